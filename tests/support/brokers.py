"""Real brokers for tests, each with ports and directories of its own on loopback.

RabbitMQ and NATS come from Debian's packages (rabbitmq-server, nats-server); without them `missing()` says so. Kafka is
the mock cluster of librdkafka, which speaks the real protocol and shares no code with our client.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.live import free_port

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
PATIENCE = 60.0  # seconds


def missing(program: str) -> str:
    """Why tests with this broker cannot run; "" when they can."""
    if program == "rabbitmq-server" and RABBITMQ.exists() and shutil.which("epmd"):
        return ""
    if program == "nats-server" and shutil.which("nats-server", path=os.environ["PATH"] + ":/usr/sbin"):
        return ""
    return f"{program} is not installed: apt-get install {program}"


class _Process:
    """A program in a process group of its own."""

    def __init__(self, *command: str, environ: Mapping[str, str] | None = None, output: Path) -> None:
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                env=dict(os.environ) | dict(environ or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """At once, with all that it started."""
        if not self.ended:
            self.signal(signal.SIGKILL)
        self._process.wait()


class Broker:
    """Started by `start` on the same port each time, ended by `kill`; what it has stored stays."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self._processes: list[_Process] = []

    async def start(self) -> None:
        self._launch()
        await self._listens()

    def kill(self) -> None:
        while self._processes:
            self._processes.pop().kill()

    def freeze(self) -> None:
        self._processes[-1].signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._processes[-1].signal(signal.SIGCONT)

    def _launch(self) -> None:
        raise NotImplementedError

    async def _listens(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                if self._processes[-1].ended or time.monotonic() > deadline:
                    raise AssertionError((self.directory / "output").read_text()) from None
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class RabbitMq(Broker):
    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def _launch(self) -> None:
        ports = {"RABBITMQ_DIST_PORT": str(free_port()), "ERL_EPMD_PORT": str(free_port())}
        config = self.directory / "rabbitmq.conf"
        config.write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlog.console = true\nlog.console.level = warning\n")
        (self.directory / "plugins").write_text("[].\n")
        environ = ports | {
            "HOME": str(self.directory),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"mailerd{self.port}@localhost",
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "none"),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}",
        }
        output = self.directory / "output"
        self._processes.append(_Process("epmd", environ=environ, output=output))
        self._processes.append(_Process(str(RABBITMQ), environ=environ, output=output))


class NatsServer(Broker):
    """With JetStream, whose files stay when it is killed."""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def _launch(self) -> None:
        program = shutil.which("nats-server", path=os.environ["PATH"] + ":/usr/sbin")
        assert program is not None
        options = ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.directory / "store")]
        self._processes.append(_Process(program, *options, output=self.directory / "output"))


class MockKafka:
    """One broker of librdkafka, in this process, for as long as this object lives."""

    def __init__(self) -> None:
        from confluent_kafka.admin import AdminClient

        self._admin = AdminClient({"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 0})
        (broker,) = self._admin.list_topics(timeout=10).brokers.values()
        self.address = f"{broker.host}:{broker.port}"

    def read(self, topic: str, partitions: int = 4) -> list[Any]:
        """All messages of a topic: by partition in their order."""
        from confluent_kafka import Consumer, TopicPartition

        found: list[Any] = []
        options = {"bootstrap.servers": self.address, "group.id": "test", "enable.partition.eof": True, "log_level": 0}
        consumer = Consumer(options | {"auto.offset.reset": "earliest"})
        for number in range(partitions):
            consumer.assign([TopicPartition(topic, number, 0)])
            while (message := consumer.poll(10)) is not None and message.error() is None:
                found.append(message)
        consumer.close()
        return found
