"""Programs that are measured and not part of this machine: fetched once by their own package managers.

All of it stays in the cache below the work directory, but for libraries that Debian's packages need. Debian has one
mail server at a time, so that the others are unpacked and not installed, and see what they expect to have in a file
system of their own.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers import UnavailableError

WORK = Path(os.environ.get("MAILERD_BENCH_WORK", Path(__file__).parents[1] / "work"))
PATIENCE = 600.0  # seconds for one order to a package manager
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}


def apt_install(*packages: str) -> None:
    """Install them for the whole machine, or raise UnavailableError."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise UnavailableError(f"apt-get install {' '.join(packages)}: by root, on Debian")
    words = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", *packages]
    try:
        _order(words)
    except UnavailableError:  # the lists are old, or there are none
        _order(["apt-get", "update", "--quiet=2"])
        _order(words)


def unpacked(package: str) -> Path:
    """The tree of Debian's package, with the libraries that it needs installed."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        raise UnavailableError(f"{package} is unpacked and run by root, on Linux")
    tree = _cache() / package
    if not tree.exists():
        if not _said(["apt-cache", "show", package]):
            _order(["apt-get", "update", "--quiet=2"])
        depends = _said(["apt-cache", "depends", "--important", package]).splitlines()
        libraries = [line.split()[1] for line in depends if line.strip().startswith("Depends: lib")]
        apt_install(*libraries)
        with tempfile.TemporaryDirectory(dir=_cache()) as temporary:
            _order(["apt-get", "download", "--quiet=2", package], cwd=Path(temporary))
            file = next(Path(temporary).glob("*.deb"))
            _order(["dpkg", "-x", str(file), str(Path(temporary, "tree"))])
            version = _said(["dpkg-deb", "--field", str(file), "Version"])
            Path(temporary, "tree", "version").write_text(version)
            Path(temporary, "tree").rename(tree)
    return tree


def npm_packages(name: str, packages: Sequence[str]) -> Path:
    """A directory whose node_modules has these packages, without what they call optional."""
    if shutil.which("npm") is None:
        raise UnavailableError(f"{name} needs Node.js and npm")
    place = _cache() / name
    if not (place / "node_modules").exists():
        place.mkdir(exist_ok=True)
        words = ["npm", "install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", "."]
        try:
            _order([*words, *packages], cwd=place)
        except UnavailableError:
            shutil.rmtree(place)
            raise
    return place


def python_environment(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of a virtual environment that has these packages."""
    place = _cache() / name
    if not (place / "complete").exists():
        shutil.rmtree(place, ignore_errors=True)
        _order([sys.executable, "-m", "venv", str(place)])
        _order([str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *packages])
        (place / "complete").touch()
    return place / "bin" / "python"


def in_place_of(places: Mapping[str, Path]) -> list[str]:
    """The beginning of a command that sees our files and directories in place of the system's, and nobody else does."""
    mounts = "".join(f"mount --bind '{ours}' '{theirs}' && " for theirs, ours in places.items())
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mounts + 'exec "$@"', "sh"]


def accounts(directory: Path, users: Mapping[str, int]) -> dict[str, Path]:
    """Files of accounts with these users besides the system's, each with a group of its name and number."""
    users_file, groups_file = directory / "passwd", directory / "group"
    lines = "".join(f"{name}:x:{number}:{number}::/nonexistent:/bin/false\n" for name, number in users.items())
    users_file.write_text(Path("/etc/passwd").read_text() + lines)
    groups_file.write_text(
        Path("/etc/group").read_text() + "".join(f"{name}:x:{number}:\n" for name, number in users.items())
    )
    return {"/etc/passwd": users_file, "/etc/group": groups_file}


def _cache() -> Path:
    place = WORK / "installed"
    place.mkdir(parents=True, exist_ok=True)
    return place.resolve()


def _order(words: Sequence[str], cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=os.environ | QUIET,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{words[0]}: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UnavailableError(f"{' '.join(words[:2])}: {said[-1] if said else done.returncode}")


def _said(words: Sequence[str]) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE).stdout.strip()
    except OSError as error:
        raise UnavailableError(f"{words[0]}: {error}") from None
