"""`mailerd credentials`: made, shown, changed, used."""

import os
import urllib.request

from tests.cli.conftest import document, lines


def api_status(daemon, token: str) -> int:
    request = urllib.request.Request(
        "http://{}:{}/api/v1/emails".format(*daemon.http), headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_token_stands_alone_on_standard_output_and_works(daemon):
    made = daemon.command("credentials", "create", "app", "--scope", "send", "--scope", "read")
    token = made.out.strip()
    assert made.out == f"{token}\n"
    assert token.startswith("mlr_")
    assert "shown only now" in made.err
    assert api_status(daemon, token) == 200


def test_a_rotated_token_takes_the_place_of_the_old_one(daemon):
    daemon.command("credentials", "create", "turning", "--scope", "read")
    new = document(daemon.command("credentials", "rotate", "turning", "--json"))
    assert new["name"] == "turning"
    assert api_status(daemon, new["token"]) == 200


def test_what_was_asked_for_is_shown_and_the_secret_never_again(daemon):
    options = "--sender-domain A.example --sender-domain *.b.example --stream marketing --pool default --tenant t1"
    rates = "--message-rate 100/h --recipient-rate 5000/d"
    token = daemon.command("credentials", "create", "shop", *options.split(), *rates.split()).out.strip()

    shown = daemon.command("credentials", "show", "shop", "--json")
    found = document(shown)
    assert found["sender_domains"] == ["a.example", "*.b.example"]
    assert (found["stream"], found["pool"], found["tenant"]) == ("marketing", "default", "t1")
    assert (found["message_rate"], found["recipient_rate"], found["scopes"]) == ("100/h", "5000/d", ["send"])
    people = daemon.command("credentials", "show", "shop").out + daemon.command("credentials", "list").out
    assert "100/h" in people
    assert token not in people + shown.out


def test_a_password_comes_from_standard_input(daemon):
    made = daemon.command("credentials", "create", "printer", "--password", given="correct horse battery\n")
    assert (made.status, made.out) == (0, "")
    assert "correct horse" not in made.err
    assert document(daemon.command("credentials", "show", "printer", "--json"))["kind"] == "password"


def test_what_cannot_be_is_refused_in_one_line(daemon):
    daemon.command("credentials", "create", "taken")
    for arguments, given, words in (
        (("taken",), "", "there is a credential taken already"),
        (("Upper",), "", "a name is"),
        (("short", "--password"), "abc\n", "at least"),
        (("none", "--password"), "", "at least"),
        (("x", "--sender-domain", "not a domain"), "", "example.com"),
    ):
        done = daemon.command("credentials", "create", *arguments, given=given)
        assert done.status == os.EX_USAGE
        assert words in done.err
        assert done.err.count("\n") == 1


def test_a_disabled_credential_is_marked_and_may_be_enabled_again(daemon):
    daemon.command("credentials", "create", "away")
    assert document(daemon.command("credentials", "disable", "away", "--json")) == {
        "name": "away",
        "result": "disabled",
    }
    assert daemon.command("credentials", "disable", "away").status == 0  # it is what was asked for
    [found] = [each for each in lines(daemon.command("credentials", "list", "--json")) if each["name"] == "away"]
    assert found["disabled_at"]
    assert daemon.command("credentials", "enable", "away").status == 0
    assert document(daemon.command("credentials", "show", "away", "--json"))["disabled_at"] is None


def test_deleting_asks_first(daemon):
    daemon.command("credentials", "create", "gone")
    assert daemon.command("credentials", "delete", "gone").status == 1
    assert daemon.command("credentials", "show", "gone").status == 0
    assert daemon.command("credentials", "delete", "gone", "--yes").status == 0
    for action in ("show", "disable", "enable", "rotate"):
        done = daemon.command("credentials", action, "gone")
        assert done.status == os.EX_NOINPUT
        assert "no credential gone" in done.err
