"""Another configuration for a running daemon: all of it or nothing, and without closing a connection."""

import asyncio
import json
import os
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from mailerd.config import parse
from mailerd.config.changes import attainable, changed
from mailerd.config.documents import Documents, parse_reloaded, read_documents
from mailerd.daemon.reload import request_reload
from mailerd.errors import ConfigError
from tests.support.daemon import RunningDaemon
from tests.support.live import CONFIG, LiveDaemon
from tests.support.smtp_intake import make_certificate, trusting

Make = Callable[..., RunningDaemon]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Make main processes with stand-in workers, on one data directory; all are ended at the end of the test."""
    made: list[RunningDaemon] = []

    def make(**options: object) -> RunningDaemon:
        made.append(RunningDaemon(tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for daemon in made:
        if hasattr(daemon, "process") and daemon.process.returncode is None:
            await daemon.stop()


async def reload(daemon: RunningDaemon, *, add: str = "", **kept: str) -> tuple[int, str, str]:
    """Append lines to the file and run `mailerd reload`: exit status, standard output, standard error."""
    daemon.file.write_text(daemon.file.read_text() + add)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailerd", "reload", "--config", str(daemon.file), *kept.values()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def ports(daemon: RunningDaemon, workers: int) -> dict[int, int]:
    """`delivery.port` as each worker has it, by its pid."""
    seen: dict[int, int] = {}
    while len(seen) < workers:
        greeting = await daemon.greeting()
        seen[greeting["pid"]] = greeting["port"]
    return seen


# what can change, and what cannot


def test_what_can_change_does_and_the_sockets_keep_their_place() -> None:
    started = parse(
        "listeners:\n"
        "  - {bind: '127.0.0.1:2525', starttls: off, auth: trusted, trusted: [127.0.0.0/8]}\n"
        "  - {bind: '127.0.0.1:2526', starttls: off, auth: trusted, trusted: [127.0.0.0/8]}\n"
        "http: {bind: '127.0.0.1:8025', max_body: 1MB}\n"
        "workers: 2\n"
    )
    wanted = parse(
        "listeners:\n"
        "  - {bind: '127.0.0.1:2526', starttls: off, auth: optional, trusted: [10.0.0.0/8]}\n"
        "  - {bind: '127.0.0.1:2527', starttls: off, auth: trusted, trusted: [127.0.0.0/8]}\n"
        "http: {bind: '127.0.0.1:8026', max_body: 2MB}\n"
        "workers: 4\n"
        "delivery: {idle: 9s}\n"
        "pools: {default: {}, other: {}}\n"
    )
    config = attainable(started, wanted)

    assert [str(listener.bind) for listener in config.listeners] == ["127.0.0.1:2525", "127.0.0.1:2526"]
    assert config.listeners[0] == started.listeners[0]
    assert config.listeners[1] == wanted.listeners[0]
    assert changed(started, config) == [
        "listeners[1].auth",
        "listeners[1].trusted[0]",
        "http.max_body",
        "pools.other",
        "delivery.idle",
    ]
    assert changed(config, wanted)[:2] == ["workers", "listeners[0].bind"]
    assert changed(config, wanted)[-1] == "http.bind"


@pytest.mark.parametrize("key", ["data_dir", "database", "workers", "resolver", "sandbox", "log"])
def test_what_needs_a_restart_stays_as_it_was(key: str) -> None:
    started = parse("")
    wanted = parse(
        "data_dir: /elsewhere\ndatabase: {connections: 9}\nworkers: 3\nresolver: {timeout: 1s}\n"
        "sandbox: {keep: 7}\nlog: {level: debug}\nretention: {events: 2y, bodies: 1d}\n"
    )
    config = attainable(started, wanted)

    assert getattr(config, key) == getattr(started, key)
    assert any(each.startswith(key) for each in changed(config, wanted))
    assert (config.retention.events, config.retention.bodies) == (2 * 365 * 86_400, 0)


def test_a_listener_that_stays_until_the_restart_keeps_what_it_needs(tmp_path: Path) -> None:
    secure = "listeners: [{bind: '0.0.0.0:465', kind: submissions}]\ntls: {certificate: /c.pem, key: /k.pem}\n"
    documents = Documents("mailerd.yaml", "listeners: []\n", {})

    with pytest.raises(ConfigError) as caught:
        parse_reloaded(Documents("mailerd.yaml", secure, {}), documents, {})

    assert [(each.line, each.key) for each in caught.value.problems] == [(1, "listeners[0].kind")]
    assert "submissions needs tls.certificate and tls.key; restart mailerd instead" in caught.value.problems[0].message


def test_shaping_files_are_found_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("tenants: {}\n")
    file = tmp_path / "mailerd.yaml"
    file.write_text("shaping: {files: [ours.yaml]}\n")
    assert read_documents(file, {}).shaping == {str(tmp_path / "ours.yaml"): "tenants: {}\n"}


# the main process


async def test_all_workers_take_on_a_new_configuration(make: Make) -> None:
    daemon = make(workers=2)
    await daemon.start()
    await daemon.ready()
    before = await ports(daemon, 2)
    status, out, _ = await reload(daemon, add="delivery: {port: 2600}\nresolver: {cache: 500}\n")

    assert status == 0
    assert "changed: delivery.port\n" in out
    assert "waits for a restart: resolver.cache" in out
    assert await ports(daemon, 2) == dict.fromkeys(before, 2600)


async def test_a_worker_that_is_replaced_later_starts_with_the_new_configuration(make: Make) -> None:
    daemon = make(workers=1)
    await daemon.start()
    await daemon.ready()
    await reload(daemon, add="delivery: {port: 2600}\n")
    daemon.file.write_text("half of a fi")  # edited again, and not finished
    before = (await daemon.greeting())["pid"]

    os.kill(before, signal.SIGKILL)
    while (greeting := await daemon.greeting())["pid"] == before:
        await asyncio.sleep(0.02)

    assert greeting["port"] == 2600


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("delivery: {port: 0}\n", "mailerd.yaml:7: delivery.port: '0': expected"),
        ("tls: {certificate: c.pem, key: k.pem}\n", "c.pem cannot be read: No such file"),
        ("domains: {a.example: {dkim: [{selector: s, key_file: k.pem}]}}\n", "the key file cannot be read"),
        ("shaping: {files: [none.yaml]}\n", "none.yaml cannot be read: No such file"),
        (
            "routes: [{hosts: ['127.0.0.1:25'], auth: {username: me, password_file: none}}]\n",
            "mailerd.yaml:7: routes[0].auth.password_file: none cannot be read",
        ),
        (
            "sinks: {log: {kind: jsonl, directory: d, events: [email.vanished]}}\n",
            "mailerd.yaml:7: sinks.log.events[0]: there is no event 'email.vanished'",
        ),
    ],
)
async def test_a_bad_file_is_refused_and_the_old_configuration_stays(make: Make, bad: str, problem: str) -> None:
    daemon = make(workers=1)
    await daemon.start()
    await daemon.ready()
    before = await ports(daemon, 1)

    status, out, error = await reload(daemon, add=bad)

    assert (status, out) == (os.EX_CONFIG, "")
    assert problem in error
    status, out, error = await reload(daemon, how="--json")
    assert (status, error) == (os.EX_CONFIG, "")
    assert json.loads(out)["ok"] is False
    assert any(problem in "{file}:{line}: {key}: {message}".format(**each) for each in json.loads(out)["problems"])
    assert await ports(daemon, 1) == before


async def test_a_worker_that_cannot_take_it_on_keeps_what_it_has_and_says_so(make: Make) -> None:
    daemon = make(workers=1, manner="unwilling")
    await daemon.start()
    await daemon.ready()
    before = await ports(daemon, 1)

    status, out, _ = await reload(daemon, add="delivery: {port: 2600}\n", how="--json")

    assert status == os.EX_TEMPFAIL
    (complaint,) = json.loads(out)["workers"]
    assert complaint.startswith(f"worker {next(iter(before))}: ")
    assert complaint.endswith("mailerd.yaml:1: delivery.port: does not please this worker")
    assert await ports(daemon, 1) == before


async def test_without_a_daemon_the_command_says_so(tmp_path: Path) -> None:
    status, _, error = await reload(RunningDaemon(tmp_path))
    assert status == os.EX_UNAVAILABLE
    assert "mailerd is not running on" in error


async def test_systemd_hears_that_a_reload_begins_and_ends_and_what_was_wrong(make: Make, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "n"))
        systemd.setblocking(False)
        daemon = make(workers=1)
        await daemon.start(environ={"NOTIFY_SOCKET": str(tmp_path / "n")})
        await daemon.ready()
        heard = [""]

        async def hear(begin: str) -> str:
            while not heard[-1].startswith(begin):
                heard.append((await loop.sock_recv(systemd, 4096)).decode())
            return heard[-1]

        await hear("READY=1")
        daemon.file.write_text(daemon.file.read_text() + "nothing: 1\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert "\nMONOTONIC_USEC=" in await hear("RELOADING=1")
        assert await hear("READY=1")
        assert "; reload failed at 2" in (said := await hear("STATUS=1 of 1 workers"))
        assert "nothing: unknown key" in said
        assert daemon.process.returncode is None


async def test_a_data_directory_with_a_long_name_can_be_asked(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*(["directory" * 4] * 4))
    deep.mkdir(parents=True)
    daemon = RunningDaemon(deep, workers=1)
    await daemon.start()
    await daemon.ready()
    try:
        outcome = await asyncio.to_thread(request_reload, daemon.data_dir)
        assert outcome is not None
        assert outcome.problems == outcome.changed == []
    finally:
        await daemon.stop()


async def test_another_file_than_the_daemon_runs_is_refused(make: Make, tmp_path: Path) -> None:
    daemon = make(workers=1)
    await daemon.start()
    await daemon.ready()
    other = tmp_path / "other.yaml"
    other.write_text(daemon.file.read_text() + "delivery: {port: 2600}\n")
    link = tmp_path / "link.yaml"
    link.symlink_to(daemon.file)

    status, out, error = await reload(daemon, another=f"--config={other}")
    assert (status, out) == (os.EX_USAGE, "")
    assert f"the daemon runs {daemon.file.resolve()}, not {other.resolve()}" in error
    status, out, _ = await reload(daemon, another=f"--config={link}")
    assert (status, "changed: nothing" in out) == (0, True)


async def test_a_terminal_that_is_closed_ends_the_daemon_as_ever(tmp_path: Path) -> None:
    daemon = RunningDaemon(tmp_path, workers=1)
    master, terminal = os.openpty()
    launch = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(2, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], "
        "sys.argv[1:])"
    )
    daemon.process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", launch, sys.executable, "-m", "tests.support.daemon", str(daemon.file), "serve"),
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    await daemon.ready()
    os.close(master)
    async with asyncio.timeout(60):
        assert await daemon.process.wait() == 0


# silence


async def test_a_main_process_that_was_stopped_does_not_take_its_own_silence_for_the_workers() -> None:
    """The watching process is stopped for longer than a worker may be silent, and goes on with the same worker."""
    watcher = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.watcher", "0.8"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert watcher.stdout is not None
    assert watcher.stdin is not None
    assert await watcher.stdout.readline() == b"started\n"
    watcher.send_signal(signal.SIGSTOP)
    await asyncio.to_thread(subprocess.run, ["sleep", "2"], check=True)  # the time that passes is the fault
    watcher.send_signal(signal.SIGCONT)
    watcher.stdin.write(b"\n")
    assert await watcher.stdout.readline() == b"watching\n"
    watcher.stdin.close()
    assert await watcher.wait() == 0


# the whole, with real workers

TWO_WORKERS = CONFIG.replace("workers: 1", "workers: 2")
TWO_WORKERS = TWO_WORKERS.replace('{{bind: "127.0.0.1:{sandbox}"}}', '{{bind: "127.0.0.1:{sandbox}", keep: 100000}}')


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with LiveDaemon(tmp_path_factory.mktemp("mailerd"), config=TWO_WORKERS) as running:
        yield running


def send(client: smtplib.SMTP, number: int) -> None:
    content = f"From: me@here.example\r\nSubject: {number}\r\n\r\nhello\r\n"
    client.sendmail("me@here.example", [f"ann{number}@there.example"], content)


def test_mail_goes_on_over_the_connections_that_are_open(live: LiveDaemon) -> None:
    clients = [smtplib.SMTP(*live.smtp) for _ in range(4)]
    text = live.file.read_text()
    done = threading.Event()
    sent = 0

    def reloads() -> None:
        try:
            for size in (3, 2, 1):
                live.file.write_text(text + f"smtp: {{max_size: {size}MB}}\n")
                live.process.send_signal(signal.SIGHUP)
                live.command("reload")
        finally:
            done.set()

    thread = threading.Thread(target=reloads)
    thread.start()
    while not done.is_set():
        send(clients[sent % 4], sent)
        sent += 1
    thread.join()

    for client in clients:
        client.ehlo()
        assert client.esmtp_features["size"] == "1000000"
        client.quit()
    while live.command("queue", "list").out:
        pass
    taken = live.command("sandbox", "list", "--json", "--limit", "100000").out
    seen = {json.loads(line)["subject"] for line in taken.splitlines()}
    assert seen == set(map(str, range(sent)))
    assert "worker.died" not in live.log


def test_new_keys_streams_and_certificates_are_taken_on_and_a_bad_one_is_not(live: LiveDaemon, tmp_path: Path) -> None:
    text = live.file.read_text()
    certificate, key = make_certificate(tmp_path)
    live.file.write_text(
        text.replace("starttls: off", "starttls: optional")
        + f"tls: {{certificate: {certificate}, key: {key}}}\n"
        + "streams: {transactional: {expires: 1d}, news: {expires: 2d}}\n"
    )
    old = smtplib.SMTP(*live.smtp)
    added = live.command("dkim", "generate", "here.example", "--selector", "s1")
    assert added.status == 0, added
    live.file.write_text(
        live.file.read_text()
        + "domains: {here.example: {dkim: [{selector: s1, key_file: dkim/here.example/s1.pem}]}}\n"
    )

    reloaded = live.command("reload")
    assert reloaded.status == 0, (reloaded, live.log)
    changes = reloaded.out
    assert "streams.news" in changes
    assert "listeners[0].starttls" in changes
    assert all(name in changes for name in (certificate, key, "dkim/here.example/s1.pem"))

    with smtplib.SMTP(*live.smtp) as client:
        client.starttls(context=trusting_any_name(certificate))
        send(client, 9_001)
    old.ehlo()
    assert old.has_extn("starttls")
    while "Subject: 9001" not in (shown := live.command("sandbox", "show", "--raw").out):
        pass
    assert "s=s1" in shown

    Path(key).write_text("no key\n")
    refused = live.command("reload")
    assert refused.status == os.EX_CONFIG
    assert "tls: certificate and key cannot be used" in refused.err
    for worker in workers_of(live.process.pid):  # those that follow start with what was good
        os.kill(worker, signal.SIGKILL)
    with smtplib.SMTP(*live.smtp) as client:
        client.starttls(context=trusting_any_name(certificate))
        send(client, 9_002)


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in children if b"mailerd\0worker" in Path(f"/proc/{each}/cmdline").read_bytes()]


def trusting_any_name(certificate: str) -> ssl.SSLContext:
    context = trusting(certificate)
    context.check_hostname = False
    return context
