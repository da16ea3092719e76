"""Haraka of npm, with its queue for outbound mail, its dkim plugin, and as many processes as there are cores."""

import json
import shutil
from pathlib import Path

from benchmarks.peers import Peer, Tls, free_port
from benchmarks.peers.installed import npm_packages

PACKAGES = ("Haraka@^3", "haraka-plugin-dkim@^1")
# Everybody may relay, and all of it goes to the sink: what a smart host is to its outbound queue.
PLUGIN = """\
exports.hook_connect = (next, connection) => {{ connection.relaying = true; next() }}
exports.hook_rcpt = (next) => next(OK)
exports.hook_get_mx = (next, hmail, domain) =>
    next(OK, {{ priority: 0, exchange: '127.0.0.1', port: domain === 'tls.example' ? {tls_sink} : {sink} }})
"""
DKIM = """\
[sign]
enabled = true
headers = From, To, Subject, Date, Message-ID, MIME-Version, Content-Type
[canon]
body = relaxed
[verify]
enabled = false
"""


class Haraka(Peer):
    """Node.js."""

    name = "haraka"
    at_250 = "the queue file, fsynced and then renamed"

    @classmethod
    def prepare(cls) -> None:
        npm_packages("haraka", PACKAGES)

    def version(self) -> str:
        file = npm_packages("haraka", PACKAGES) / "node_modules/Haraka/package.json"
        return f"Haraka {json.loads(file.read_text())['version']}"

    def start(self, sink_port: int, key: Path, selector: str, tls: Tls | None = None) -> None:
        self._port = free_port()
        config = self.directory / "config"
        modules = npm_packages("haraka", PACKAGES) / "node_modules"
        shutil.copytree(modules / "Haraka/config", config)  # as `haraka --install` would
        (config / "dkim" / "signed.example").mkdir(parents=True)
        (self.directory / "plugins").mkdir()
        (self.directory / "queue").mkdir()
        (self.directory / "plugins" / "to_sink.js").write_text(
            PLUGIN.format(sink=sink_port, tls_sink=tls.sink_port if tls else sink_port)
        )
        files = {
            "smtp.ini": f"listen=127.0.0.1:{self._port}\nnodes=2\n",
            "plugins": "\n".join([*(["tls"] if tls else []), "to_sink", "dkim"]) + "\n",
            "me": "bench.localhost\n",
            "loglevel": "WARN\n",
            "log.ini": "level=warn\n",
            "databytes": "52428800\n",
            "outbound.ini": "local_mx_ok=true\nconcurrency_max=100\n",
            "dkim.ini": DKIM,
            "dkim/signed.example/selector": f"{selector}\n",
        }
        for name, text in files.items():
            (config / name).write_text(text)
        shutil.copy(key, config / "dkim/signed.example/private")
        if tls is not None:
            shutil.copy(tls.certificate, config / "tls_cert.pem")
            shutil.copy(tls.key, config / "tls_key.pem")
        (self.directory / "node_modules").symlink_to(modules)
        self._run(["node", modules / "Haraka/bin/haraka", "-c", self.directory], "log")
        self._wait_for_port(self._port)

    def port(self, *, signed: bool) -> int:
        """One for both: the sender's domain has a key, or not."""
        return self._port
