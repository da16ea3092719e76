"""mailerd, as installed here, with its embedded PostgreSQL."""

import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import yaml

from benchmarks.peers import START, Peer, Tls


class Mailerd(Peer):
    """`settings` are put over the configuration of the benchmark."""

    name = "mailerd"
    at_250 = "body, recipients and the event, committed by PostgreSQL with fsync on: one commit for all that wait"

    def __init__(self, directory: Path, **settings: object) -> None:
        super().__init__(directory)
        self._settings = settings
        self._port = 0
        self.data_dir = directory / "data"

    def version(self) -> str:
        return f"mailerd {version('mailerd')}"

    def start(self, sink_port: int, key: Path, selector: str, tls: Tls | None = None) -> None:
        listener = {"bind": "127.0.0.1:0", "auth": "trusted", "trusted": ["127.0.0.0/8"]}
        routes = [{"match": {"domain": "*"}, "hosts": [f"127.0.0.1:{sink_port}"], "tls": "none"}]
        certificate = {}
        if tls is not None:
            encrypted = {"match": {"domain": "tls.example"}, "hosts": [f"127.0.0.1:{tls.sink_port}"], "tls": "required"}
            routes.insert(0, encrypted)
            certificate = {"tls": {"certificate": str(tls.certificate), "key": str(tls.key)}}
        config = {
            "hostname": "bench.localhost",
            "data_dir": str(self.data_dir),
            "workers": 2,
            "listeners": [listener | {"starttls": "optional" if tls else "off"}],
            "http": None,
            "routes": routes,
            "domains": {"signed.example": {"dkim": [{"selector": selector, "key_file": str(key)}]}},
            "log": {"format": "json"},
            **certificate,
        }
        file = self.directory / "mailerd.yaml"
        file.write_text(yaml.safe_dump(config | self._settings, sort_keys=False))
        self.launch()

    def launch(self) -> None:
        """Run with the configuration as it is; also after `halt`."""
        file, log = self.directory / "mailerd.yaml", self.directory / "log"
        said = log.stat().st_size if log.exists() else 0
        process = self._run([sys.executable, "-m", "mailerd", "run", "--config", file], "log")
        deadline = time.monotonic() + START
        while not (ready := re.search(rb"^mailerd ready .*smtp=127\.0\.0\.1:(\d+)", log.read_bytes()[said:], re.M)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mailerd did not start, see {log}")
            time.sleep(0.05)
        self._port = int(ready[1])

    def halt(self) -> None:
        """Stop in order, to be launched again."""
        for process in self._processes:
            process.terminate()
            process.wait(60)
        self._processes.clear()

    def port(self, *, signed: bool) -> int:
        """One for both: the sender's domain decides."""
        return self._port

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return [pid for pid in self.group.pids() if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"worker\0")]
