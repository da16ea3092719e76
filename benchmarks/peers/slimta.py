"""python-slimta of PyPI, in an environment of its own, as a program of few lines: that is how it is used."""

import subprocess
from pathlib import Path

from benchmarks.peers import Peer, Tls, UnavailableError, free_port
from benchmarks.peers.installed import python_environment

# It asks for its own version by pkg_resources, which later setuptools have no more.
PACKAGES = ("python-slimta==5.0.5", "setuptools>=70,<81")
PROGRAM = Path(__file__).with_name("slimta_server.py")


class Slimta(Peer):
    """gevent, two processes on one port. It has no DKIM."""

    name = "slimta"
    no_signature = "does not sign"
    at_250 = "nothing: the queue is in memory; its storage on disk needs pyaio, which does not install on Python 3.11"

    @classmethod
    def prepare(cls) -> None:
        words = [str(cls._python()), "-W", "ignore", "-c", "import slimta.edge.smtp"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise UnavailableError(f"python-slimta: {done.stderr.strip().splitlines()[-1]}")

    def version(self) -> str:
        return f"python-slimta {PACKAGES[0].partition('==')[2]}"

    def start(self, sink_port: int, key: Path, selector: str, tls: Tls | None = None) -> None:
        self._port = free_port()
        own = [str(self._port), str(sink_port)]
        if tls is not None:
            own += [str(tls.sink_port), str(tls.certificate), str(tls.key)]
        # -P: its directory has a module of ours that is called slimta.
        self._run([self._python(), "-P", "-W", "ignore", PROGRAM, *own], "log")
        self._wait_for_port(self._port)

    def port(self, *, signed: bool) -> int:
        return self._port

    @staticmethod
    def _python() -> Path:
        return python_environment("slimta", PACKAGES)
