"""Long runs of atheris over the targets: `scripts/fuzz [TARGET …] --minutes N`. What is found is kept, CI replays it.

Each target has a process of its own, since the engine ends with the first thing that it finds. Inputs that are trouble
are written to `tests/adversary/corpus/TARGET/`; those that only reach new code are kept while it runs.
"""

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tests.adversary.targets import Target

LONGEST = 8_192  # bytes of an input
SLOW = 10  # seconds for one input, after which it counts as found
MEMORY = 2_048  # MB


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="names of tests/adversary/targets.py; all of them")
    parser.add_argument("--minutes", type=float, default=3.0, help="of all targets together")
    given = parser.parse_args()
    import atheris  # from here on it takes a while: all of mailerd is instrumented

    with atheris.instrument_imports(include=["mailerd"]):
        from tests.adversary import mutation  # noqa: F401 - here, that what it imports is instrumented too
        from tests.adversary.targets import TARGETS
    known = {target.name: target for target in TARGETS}
    if unknown := set(given.targets) - set(known):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [known[name] for name in given.targets] or list(TARGETS)
    seconds = max(1, round(given.minutes * 60 / len(chosen)))
    troubled = 0
    for number, target in enumerate(chosen, 1):
        print(f"{number:3}/{len(chosen)}  {target.name:20}", end=" ", flush=True)
        troubled += not explored(target, seconds)
    print(f"{len(chosen)} targets, {troubled} with something found")
    return min(troubled, 1)


def explored(target: "Target", seconds: int) -> bool:
    """Whether all is well with it after so many seconds; tells what was done."""
    from tests.adversary.mutation import CORPUS, NASTY, pieces

    kept = CORPUS / target.name
    kept.mkdir(parents=True, exist_ok=True)
    before = set(kept.iterdir())
    with tempfile.TemporaryDirectory(prefix="mailerd-fuzz-") as name:
        work = Path(name)
        corpus, words, said = work / "corpus", work / "words", work / "said"
        corpus.mkdir()
        for index, seed in enumerate(target.seeds):
            (corpus / f"seed-{index}").write_bytes(seed)
        entries = {piece for piece in (*NASTY, *pieces(target)) if piece}
        words.write_text("".join(f'"{_escaped(piece)}"\n' for piece in sorted(entries)))
        child = os.fork()
        if not child:
            _fuzz(target, said, [
                f"-max_total_time={seconds}",
                f"-max_len={LONGEST}",
                f"-timeout={SLOW}",
                f"-rss_limit_mb={MEMORY}",
                f"-artifact_prefix={kept}/",
                f"-dict={words}",
                "-print_final_stats=1",
                str(corpus),
                str(kept),
            ])  # fmt: skip
        _, status = os.waitpid(child, 0)
        lines = said.read_text(errors="replace").splitlines()
    found = sorted(path.name for path in set(kept.iterdir()) - before)
    new = [name for name in found if name.startswith(("crash-", "timeout-", "oom-", "leak-", "slow-unit-"))]
    for name in set(found) - set(new):  # what only reached new code is not trouble
        (kept / name).unlink()
    if not any(kept.iterdir()):
        kept.rmdir()
    inputs = next((line.split()[-1] for line in lines if line.startswith("stat::number_of_executed_units:")), "?")
    edges = max((int(line.split("cov: ")[1].split()[0]) for line in lines if "cov: " in line), default=0)
    well = not new and not status
    print(f"{inputs:>9} inputs {edges:>6} edges  {'ok' if well else 'FOUND ' + ', '.join(new)}", flush=True)
    if not well:
        print(
            "\n".join(f"         {line}" for line in lines[-60:] if "Error" in line or " File " in line or "==" in line)
        )
    return well


def _fuzz(target: "Target", said: Path, options: list[str]) -> NoReturn:
    """In a process of its own: the engine ends it."""
    import atheris

    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        atheris.Setup([sys.argv[0], *options], target)
        atheris.Fuzz()
        os._exit(0)
    except BaseException as error:
        traceback.print_exception(error)
    finally:
        os._exit(1)


def _escaped(data: bytes) -> str:
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\x{byte:02x}" for byte in data)


if __name__ == "__main__":
    sys.exit(main())
