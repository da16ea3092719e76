"""Failpoints: every named step is in the code, what the variable says is followed, and nonsense is refused."""

import ast
import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import mailerd
from mailerd import failpoints
from mailerd.errors import ConfigError
from mailerd.failpoints import Failpoint, parse

ROOT = Path(mailerd.__file__).parent
PASSING = """
import sys
from mailerd import failpoints
for step in sys.argv[1:]:
    failpoints.reached(step)
    print(step, flush=True)
"""


def passings() -> list[str]:
    """The steps that the code passes; each has to be guarded, so that it costs nothing."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If) and "failpoints.ON" in ast.unparse(node.test):
                (statement,) = node.body
                assert isinstance(statement, ast.Expr), path
                call = statement.value
                assert isinstance(call, ast.Call), path
                assert ast.unparse(call.func) == "failpoints.reached", path
                found.append(ast.literal_eval(call.args[0]))
    return found


def calls() -> int:
    return sum(path.read_text().count("failpoints.reached(") for path in ROOT.rglob("*.py")) - 1  # of the docstring


async def run(words: str, *steps: str) -> tuple[int, list[str], str]:
    """A process that passes these steps: its exit status, the steps that it got past, and what it complains of."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PASSING, *steps),
        env=os.environ | {failpoints.VARIABLE: words},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode().split(), error.decode()


def test_every_step_stands_in_the_code_once_and_guarded_and_no_other() -> None:
    assert sorted(passings()) == sorted(failpoints.STEPS)
    assert calls() == len(failpoints.STEPS)


def test_the_words_of_the_variable() -> None:
    assert parse("attempt.after_dot=kill@37, settle.before=pause:2s,claim.after=error,settle.after=pause:50ms@2,") == {
        "attempt.after_dot": Failpoint("kill", 0.0, 37),
        "settle.before": Failpoint("pause", 2.0, 1),
        "claim.after": Failpoint("error", 0.0, 1),
        "settle.after": Failpoint("pause", 0.05, 2),
    }
    assert parse("") == {}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("attempt.after_dott=kill", "there is no step 'attempt.after_dott'; there are accepted.before_commit, "),
        ("attempt.after_dot", "is not STEP=kill, STEP=error or STEP=pause:2s"),
        ("attempt.after_dot=kill@0", "is not STEP=kill"),
        ("attempt.after_dot=pause", "is not STEP=kill"),
        ("attempt.after_dot=error", "attempt.after_dot cannot fail; accepted.after_commit, "),
    ],
)
def test_words_that_cannot_be_followed(words: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(words)
    assert str(caught.value).startswith("environment:0: MAILERD_FAILPOINTS: ")
    assert complaint in str(caught.value)


async def test_the_daemon_does_not_start_with_a_step_that_there_is_not(tmp_path: Path) -> None:
    file = tmp_path / "mailerd.yaml"
    file.write_text(f"data_dir: {tmp_path / 'data'}\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailerd", "run", "--config", str(file)),
        env=os.environ | {failpoints.VARIABLE: "settle.befor=kill"},
        stderr=subprocess.PIPE,
    )
    _, error = await process.communicate()
    assert process.returncode == os.EX_CONFIG
    assert error.decode().startswith("environment:0: MAILERD_FAILPOINTS: there is no step 'settle.befor'")
    assert not (tmp_path / "data").exists()


async def test_kill_comes_at_the_passing_asked_for() -> None:
    status, past, _ = await run("settle.after=kill@2", "settle.after", "settle.before", "settle.after", "settle.closed")
    assert (status, past) == (-signal.SIGKILL, ["settle.after", "settle.before"])
    status, past, _ = await run("settle.after=kill@3", "settle.after", "settle.after")
    assert (status, past) == (0, ["settle.after", "settle.after"])


async def test_an_error_is_as_if_the_database_had_gone() -> None:
    status, _, error = await run("settle.before=error", "settle.before")
    assert status == 1
    assert "FailpointError: failpoint settle.before" in error
    assert issubclass(failpoints.FailpointError, OSError)


async def test_a_file_holds_for_one_process_alone(tmp_path: Path) -> None:
    file = tmp_path / "failpoints"
    assert await run(f"@{file}", "settle.after") == (0, ["settle.after"], "")
    file.write_text("settle.after=kill")
    ended = await asyncio.gather(*(run(f"@{file}", "settle.after") for _ in range(3)))
    assert sorted(status for status, _, _ in ended) == [-signal.SIGKILL, 0, 0]
    assert not file.exists()
    assert (tmp_path / "failpoints.taken").exists()


@pytest.mark.parametrize("content", [b"settle.after=kil", b"\xff\xfe", None])
async def test_a_file_that_cannot_be_followed_is_logged_once_and_says_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "failpoints"
    if content is None:
        file.mkdir()  # that is what even root cannot read
    else:
        file.write_bytes(content)

    status, said, error = await run(f"@{file}", "settle.after", "settle.before", "settle.after")

    assert (status, error) == (0, "")
    assert said[-3:] == ["settle.after", "settle.before", "settle.after"]
    assert said.count("failpoints.ignored") == 1


async def test_a_file_that_cannot_be_taken_is_for_nobody(tmp_path: Path) -> None:
    file = tmp_path / "failpoints"
    file.write_text("settle.after=kill")
    (tmp_path / "failpoints.taken").mkdir()

    status, said, _ = await run(f"@{file}", "settle.after", "settle.before")

    assert (status, said[-1]) == (0, "settle.before")
    assert said.count("failpoints.ignored") == 1


async def test_without_the_variable_nothing_is_on() -> None:
    environ = {name: value for name, value in os.environ.items() if name != failpoints.VARIABLE}
    command = (sys.executable, "-c", "from mailerd import failpoints; print(failpoints.ON)")
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert out == b"False\n"
