from pathlib import Path

import pytest

from mailerd.cli.settings import environment

SERVICE = Path("/etc/mailerd/mailerd.yaml")


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    directory = tmp_path / "mailerd.service"
    directory.mkdir()
    return directory


def test_a_command_for_the_service_sees_the_credentials_of_the_service(credentials: Path) -> None:
    seen = environment(SERVICE, {"TERM": "dumb"}, credentials, SERVICE)
    assert seen == {"TERM": "dumb", "CREDENTIALS_DIRECTORY": str(credentials)}


def test_a_command_for_another_configuration_does_not_see_them(credentials: Path) -> None:
    assert environment(Path("config/dev.yaml"), {}, credentials, SERVICE) == {}


def test_credentials_of_ones_own_win(credentials: Path) -> None:
    assert environment(SERVICE, {"CREDENTIALS_DIRECTORY": "/x"}, credentials, SERVICE) == {
        "CREDENTIALS_DIRECTORY": "/x"
    }


def test_without_a_running_service_nothing_is_added(tmp_path: Path) -> None:
    assert environment(SERVICE, {}, tmp_path / "none", SERVICE) == {}
