"""The command line as such: what it takes, what it says when it is misused, and its exit statuses."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from mailerd import __version__
from mailerd.cli import app, serving
from mailerd.cli.output import clean, from_now, span
from mailerd.cli.places import line_of
from mailerd.cli.serving import config_of, is_plain_run
from mailerd.delivery.identity import generate
from tests.support.live import LiveDaemon, command
from tests.support.scripted_mx import certificate


def names(group: TyperGroup, before: str = "") -> Iterator[str]:
    """Of all commands below it; a group that does something by itself is one, too."""
    for name, each in group.commands.items():
        if isinstance(each, TyperGroup):
            yield from names(each, f"{before}{name} ")
        elif not each.hidden:
            yield before + name


COMMANDS = [*names(cast(TyperGroup, get_command(app.app))), "sources"]
WITHOUT_CONFIGURATION = ("version", "verdicts", "classify")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> LiveDaemon:
    """One that was configured and never started."""
    return LiveDaemon(tmp_path_factory.mktemp("stopped"))


@pytest.mark.parametrize(
    ("arguments", "plain", "path"),
    [
        (["run", "--config", "a.yaml"], True, "a.yaml"),
        (["run", "-c", "a.yaml"], True, "a.yaml"),
        (["run", "--config=a.yaml"], True, "a.yaml"),
        (["--config", "a.yaml", "run"], True, "a.yaml"),
        (["-c", "a.yaml", "run", "--config=b.yaml"], True, "b.yaml"),
        (["run"], True, "usual.yaml"),
        (["run", "--help"], False, "usual.yaml"),
        (["run", "--config"], False, "usual.yaml"),
        (["run", "more"], False, "usual.yaml"),
        (["queue", "list", "-c", "a.yaml"], False, "a.yaml"),
        ([], False, "usual.yaml"),
    ],
)
def test_run_is_told_apart_from_commands_for_people(arguments, plain, path):
    assert is_plain_run(arguments) is plain
    assert config_of(arguments, {"MAILERD_CONFIG": "usual.yaml"}) == Path(path)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_says_where_its_configuration_comes_from(name):
    shown = command(*name.split(), "--help")
    assert shown.status == 0
    assert f"mailerd {name}" in shown.out
    assert "Examples:" in shown.out
    assert "MAILERD_CONFIG" in shown.out or name.startswith(WITHOUT_CONFIGURATION)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nonsense", "nonsense"),
        ("queue nonsense", "nonsense"),
        ("queue list --nonsense", "--nonsense"),
        ("queue hold", "--all"),
        ("queue hold --all --domain x.example", "leave out"),
        ("queue hold --message 1", "not a message id"),
        ("queue hold --recipient @", "see `mailerd queue hold --help`"),
        ("queue list --limit 0", "--limit"),
        ("contacts export --format foo", "'--format': 'foo' is not one of 'csv', 'jsonl'; see"),
        ("trace", "MESSAGE_ID"),
        ("trace nonsense", "msg_38g13rwt40000"),
        ("search --after yesterday", "2026-11-22"),
        ("send-test", "--to"),
        ("send-test --to nobody", "not an address"),
        ("send-test --to a@x.example --server here", "HOST:PORT"),
        ("explain-route a@b@c", "neither an address nor a domain"),
        ("explain-route x.example --stream none", "transactional"),
        ("credentials create a --stream none", "only transactional, marketing"),
        ("credentials create a --message-rate often", "--message-rate"),
        ("webhooks test whk_1", "'whk_1' is not an id such as whk_38g13rwt40000"),
        ("webhooks deliveries dlv_5", "'dlv_5' is not an id such as whk_38g13rwt40000"),
        ("webhooks retry whk_38g13rwt40000 5", "'5' is not an id such as dlv_38g13rwt40000"),
        ("dkim generate example.com --selector a_b", "selector"),
    ],
)
def test_misuse_is_one_line_on_standard_error_and_status_64(stopped, arguments, words):
    done = stopped.command(*arguments.split())
    assert done.status == os.EX_USAGE, done
    assert words in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_without_a_command_the_help_is_shown():
    done = command()
    assert done.status == os.EX_USAGE
    assert "check-config" in done.out


@pytest.mark.parametrize(
    "arguments",
    ["queue list", "queue show", "queue hold --all", "trace msg_0000000000000", "search", "credentials list"],
)
def test_a_command_beside_no_daemon_says_how_to_start_one(stopped, arguments):
    done = stopped.command(*arguments.split())
    assert done.status == os.EX_UNAVAILABLE
    assert done.err == (
        f"mailerd: mailerd is not running on {stopped.data_dir}: start it with `mailerd run --config {stopped.file}`\n"
    )


def test_a_command_beside_a_daemon_on_an_external_database_says_what_it_needs(tmp_path):
    other = LiveDaemon(tmp_path)
    other.data_dir.mkdir(exist_ok=True)
    (other.data_dir / "lock").touch()
    done = other.command("queue", "list")
    assert done.status == os.EX_UNAVAILABLE
    assert "set MAILERD_DATABASE_URL" in done.err


def test_a_database_that_is_not_there_is_named_without_its_password(stopped):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = f"postgresql://mailerd:secret-word@127.0.0.1:{port}/mailerd"
    done = command("queue", "list", environ=stopped.environ | {"MAILERD_DATABASE_URL": url})
    assert done.status == os.EX_UNAVAILABLE
    assert f"127.0.0.1:{port}" in done.err
    assert "secret-word" not in done.err
    assert done.err.count("\n") == 1


def test_the_configuration_may_be_named_before_and_after_the_command(stopped):
    nowhere = stopped.environ | {"MAILERD_CONFIG": "/nonexistent"}
    for arguments in (("-c", str(stopped.file), "check-config"), ("check-config", "--config", str(stopped.file))):
        assert command(*arguments, environ=nowhere).status == 0
    assert command("check-config", str(stopped.file), environ=nowhere).status == 0
    assert command("check-config", environ=nowhere).status == os.EX_CONFIG


def test_without_a_named_configuration_the_one_of_the_working_directory_is_used(tmp_path, stopped):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "dev.yaml").write_text("hostname: here.example\n")
    environ = {name: value for name, value in os.environ.items() if name != "MAILERD_CONFIG"}
    done = command("check-config", environ=environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, cwd=tmp_path)
    assert "config/dev.yaml: ok" in done.out
    assert "here.example" in done.out


def test_the_version_is_shown_to_people_and_programs():
    assert command("version").out == command("--version").out == f"mailerd {__version__}\n"
    assert json.loads(command("version", "--json").out) == {"version": __version__}


def problems(tmp_path: Path, text: str) -> tuple[list[str], list[dict[str, object]]]:
    """What check-config says of a configuration, to people and to programs."""
    file = tmp_path / "mailerd.yaml"
    file.write_text(text)
    said, plain = command("check-config", str(file)), command("check-config", str(file), "--json")
    assert said.status == plain.status == os.EX_CONFIG
    assert json.loads(plain.out)["ok"] is False
    assert not said.out
    return said.err.splitlines(), json.loads(plain.out)["problems"]


def test_check_config_tells_every_problem_with_its_line(tmp_path):
    said, plain = problems(tmp_path, "hostnme: a\ndelivery: {idle: 5 parsecs}\n")
    assert [line.split(": ")[0] for line in said] == [f"{tmp_path}/mailerd.yaml:{line}" for line in (1, 2)]
    assert [(problem["line"], problem["key"]) for problem in plain] == [(1, "hostnme"), (2, "delivery.idle")]


def test_check_config_reads_the_dkim_keys_and_the_certificate(tmp_path):
    (tmp_path / "bad.pem").write_text("nothing")
    keys = "[{selector: s1, key_file: bad.pem}, {selector: s2, key_file: missing.pem}]"
    said, plain = problems(
        tmp_path,
        f"data_dir: {tmp_path}\ntls:\n  certificate: {tmp_path}/bad.pem\n  key: {tmp_path}/bad.pem\n"
        f"domains:\n  example.com:\n    dkim: {keys}\n",
    )
    assert len(said) == 3
    assert said[0].startswith(f"{tmp_path}/mailerd.yaml:2: tls: certificate and key cannot be used")
    assert [problem["file"] for problem in plain[1:]] == [f"{tmp_path}/bad.pem", f"{tmp_path}/missing.pem"]


def test_check_config_sums_up_what_is_good(tmp_path):
    generate(tmp_path / "key.pem")
    pair = certificate("mail.test")
    file = tmp_path / "mailerd.yaml"
    file.write_text(
        f"data_dir: {tmp_path}\ntls: {{certificate: {pair.pem}, key: {pair.key}}}\n"
        "domains: {example.com: {dkim: [{selector: s1, key_file: key.pem}]}}\n"
    )
    done = command("check-config", str(file))
    assert done.status == 0, done
    assert "example.com: selector s1" in done.out
    plain = json.loads(command("check-config", str(file), "--json").out)
    assert (plain["ok"], plain["problems"]) == (True, [])


@pytest.mark.parametrize("arguments", ["search", "queue list", "reload", "check-config", "run"])
def test_without_a_configuration_anywhere_it_is_said_where_one_is_looked_for(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAILERD_CONFIG", raising=False)
    monkeypatch.setattr(serving, "PLACES", (tmp_path / "etc/mailerd.yaml", Path("config/dev.yaml")))
    assert app.run(arguments.split()) == os.EX_CONFIG
    assert capsys.readouterr().err == (
        f"configuration: there is neither {tmp_path}/etc/mailerd.yaml nor {tmp_path}/config/dev.yaml: "
        "name a file by --config or MAILERD_CONFIG\n"
    )


def test_a_command_that_needs_a_broken_configuration_says_what_to_do(tmp_path):
    (tmp_path / "mailerd.yaml").write_text("workers: many\n")
    done = command("queue", "list", "--config", str(tmp_path / "mailerd.yaml"))
    assert done.status == os.EX_CONFIG
    first, second = done.err.splitlines()
    assert first.startswith(f"{tmp_path}/mailerd.yaml:1: workers: ")
    assert second == "mailerd: nothing was done: mend the file, or name another by --config or MAILERD_CONFIG"


RETURNING = """\
data_dir: {directory}
listeners:
  - {{bind: "127.0.0.1:25", kind: inbound}}
streams: {{transactional: {{}}, marketing: {{}}, news: {{unsubscribe: true}}}}
domains: {{example.com: {{return_path: bounce.example.com}}}}
tenants: {{acme: {{return_path: bounce.acme.example}}}}
inbound: {{forward: {{postmaster: ops@example.com}}}}
suppression: {{scope: global}}
webhooks: {{allow_private: [localhost]}}
sinks:
  log: {{kind: jsonl, directory: /var/log/m, events: [email.bounced], streams: [news]}}
  bus: {{kind: amqp, url: "amqp://u:hunter2@h/"}}
upstreams: {{eu: {{kind: ses, key: arn}}}}
routes: [{{hosts: ["smtp.example:587"], upstream: eu}}]
"""


def test_check_config_sums_up_what_comes_back_and_who_is_told(tmp_path):
    file = tmp_path / "mailerd.yaml"
    file.write_text(RETURNING.format(directory=tmp_path))
    done = command("check-config", str(file))
    assert done.status == 0, done
    for said in (
        "127.0.0.1:25 inbound",
        "bounces come to bounce.example.com",
        "acme: bounces come to bounce.acme.example",
        "postmaster goes on to ops@example.com",
        "all tenants",
        "localhost",
        "log: jsonl to /var/log/m, email.bounced of news",
        "bus: amqp to mailerd.events, all events",
        "eu: ses, 1 route",
    ):
        assert said in done.out, said
    assert "auth" not in done.out
    assert "hunter2" not in done.out


@pytest.mark.parametrize(
    ("more", "noted"),
    [
        ("", "gets no link to unsubscribe, only a mailto"),
        ("http: {public_url: 'https://m.example'}\n", ""),
        ("http: null\n", "gets no link to unsubscribe, only a mailto"),
    ],
)
def test_check_config_notes_mail_without_a_way_to_unsubscribe(tmp_path, more, noted):
    file = tmp_path / "mailerd.yaml"
    file.write_text(RETURNING.format(directory=tmp_path) + more)
    done, plain = command("check-config", str(file)), json.loads(command("check-config", str(file), "--json").out)
    assert done.status == 0
    assert [note["key"] for note in plain["notes"]] == (["streams.marketing", "streams.news"] if noted else [])
    assert all(noted in note["message"] and note["line"] == 4 for note in plain["notes"])
    assert (f"note: {file}:4: streams.marketing: " in done.out) == bool(noted)


def test_without_return_paths_there_is_no_way_at_all_and_that_is_noted(tmp_path):
    file = tmp_path / "mailerd.yaml"
    file.write_text(f"data_dir: {tmp_path}\n")
    done = command("check-config", str(file))
    assert done.status == 0
    assert "note: streams.marketing: its mail gets no way to unsubscribe" in done.out


def test_check_config_knows_the_events_that_sinks_may_name(tmp_path):
    sink = "    kind: jsonl\n    directory: d\n    events: [email.bounced, email.open]\n"
    said, plain = problems(tmp_path, f"data_dir: {tmp_path}\nsinks:\n  log:\n{sink}")
    assert [(problem["line"], problem["key"]) for problem in plain] == [(6, "sinks.log.events[1]")]
    assert "there is no event 'email.open'" in said[0]


def test_run_tells_a_bad_configuration_like_check_config(tmp_path):
    file = tmp_path / "mailerd.yaml"
    file.write_text("hostnme: a\n")
    done = command("run", "--config", str(file))
    assert done.status == os.EX_CONFIG
    assert done.err.startswith(f"{file}:1: hostnme: ")


def test_run_tells_a_sink_that_cannot_be_like_check_config(tmp_path):
    file = tmp_path / "mailerd.yaml"
    file.write_text("sinks:\n  log: {kind: jsonl, directory: d, events: [email.vanished]}\n")
    done = command("run", "--config", str(file))
    assert done.status == os.EX_CONFIG
    assert done.err.startswith(f"{file}:2: sinks.log.events[0]: there is no event 'email.vanished'")


def test_the_daemon_is_not_burdened_with_what_only_commands_need(tmp_path):
    file = tmp_path / "mailerd.yaml"
    file.write_text("hostnme: a\n")
    code = (
        "import sys; sys.argv = ['mailerd', 'run', '-c', sys.argv[1]]\nfrom mailerd.cli import main\n"
        "try: main()\nexcept SystemExit: print([name for name in ('typer', 'rich') if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_worker_is_not_burdened_with_the_web_before_it_knows_that_it_serves_any():
    code = (
        "import sys, mailerd.worker\n"
        "print([name for name in sys.modules if name.startswith(('mailerd.web', 'aiohttp.web'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("hostname", 1),
        ("domains", 2),
        ("domains.example.com", 3),
        ("domains.example.com.dkim[1]", 6),
        ("domains.example.com.dkim[1].selector", 6),
        ("domains.example.com.dkim[7]", 4),
        ("domains.example.org", 2),
        ("nothing", 0),
    ],
)
def test_the_line_of_a_key_is_found_though_names_hold_dots(tmp_path, key, line):
    file = tmp_path / "a.yaml"
    file.write_text("hostname: a\ndomains:\n  example.com:\n    dkim:\n      - {selector: a}\n      - {selector: b}\n")
    assert line_of(file, key) == line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.9, "1 min"),
        (7_199, "2 h"),
        (60, "1 min"),
        (61, "1 min 1 s"),
        (3_600, "1 h"),
        (90_061, "1 d 1 h"),
    ],
)
def test_spans_are_told_in_two_units(seconds, words):
    assert span(seconds) == words


def test_what_a_mail_server_says_cannot_steer_the_terminal():
    assert clean("550 \x1b[2J\x07no\u202e such") == "550 �[2J�no� such"
    assert clean("Grüße, 世界") == "Grüße, 世界"


def test_a_time_is_told_from_now():
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    assert from_now(now + timedelta(minutes=4), now) == "in 4 min"
    assert from_now(now - timedelta(hours=2), now) == "2 h ago"
    assert from_now(now, now) == "now"
    assert from_now(None, now) == ""
