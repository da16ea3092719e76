"""What commands work on: the configuration, and the database of the daemon that runs with it."""

import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import msgspec

from mailerd import db, logs
from mailerd.cli.failure import CommandError, UnusableConfigError
from mailerd.cli.serving import PLACES, check_any, usual_config
from mailerd.config import Config, Log
from mailerd.config import load as load_config
from mailerd.db.embedded import running_url
from mailerd.errors import ConfigError

SERVICE_FILE = PLACES[0]
SERVICE_CREDENTIALS = Path("/run/credentials/mailerd.service")  # while the service runs; root may read them


@dataclass(frozen=True, slots=True)
class Settings:
    path: Path
    config: Config


def load(path: Path | None) -> Settings:
    """Read the configuration as the daemon does. Raises `ConfigError`."""
    path = path or usual_config()
    check_any(path)
    logs.set_up(Log(format="console", level="error"))
    try:
        config = load_config(path, environ=environment(path, os.environ))
    except ConfigError as error:
        raise UnusableConfigError(error.problems) from None
    return Settings(path, msgspec.structs.replace(config, hostname=config.hostname or socket.getfqdn()))


def environment(
    path: Path, environ: Mapping[str, str], credentials: Path = SERVICE_CREDENTIALS, service_file: Path = SERVICE_FILE
) -> Mapping[str, str]:
    """What the daemon of this configuration sees: systemd gives its credentials to the service, not to a shell.

    For the file of the service only: a command for another one must not get hold of the service's database.
    """
    if "CREDENTIALS_DIRECTORY" in environ or path.absolute() != service_file or not credentials.is_dir():
        return environ
    return {**environ, "CREDENTIALS_DIRECTORY": str(credentials)}


@asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[db.Pool]:
    """Connections to the database: the external one, or the embedded one of the daemon that runs on `data_dir`.

    What goes wrong with it, now or later, comes out as `CommandError` or `DatabaseError`.
    """
    try:
        pool = await db.connect_pool(database_url(settings), min=1, max=2, application_name="mailerd command")
        async with pool:
            yield pool
    except asyncpg.UndefinedTableError:
        text = f"the database is empty so far: start mailerd once with `mailerd run --config {settings.path}`"
        raise CommandError(text, os.EX_UNAVAILABLE) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionResetError, TimeoutError) as error:
        text = f"the database went away: {str(error) or type(error).__name__}; try again"
        raise CommandError(text, os.EX_UNAVAILABLE) from error


def database_url(settings: Settings) -> str:
    """Where the database is. Raises `CommandError` when it cannot be had."""
    config = settings.config
    if config.database.url is not None:
        return config.database.url
    try:
        url = running_url(Path(config.data_dir))
    except PermissionError:
        text = f"{config.data_dir} is not yours to read: run this as the user that mailerd runs as, or as root"
        raise CommandError(text, os.EX_NOPERM) from None
    if url is None:
        text = f"mailerd is not running on {config.data_dir}: start it with `mailerd run --config {settings.path}`"
        if (Path(config.data_dir) / "lock").exists() and not (Path(config.data_dir) / "postgres").exists():
            text = (
                f"{config.data_dir} has no embedded database, so mailerd runs on an external one: "
                "set MAILERD_DATABASE_URL for this command too"
            )
        raise CommandError(text, os.EX_UNAVAILABLE)
    return url
