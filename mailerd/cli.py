"""The command line."""

import asyncio
import os
import sys

from mailerd import logs
from mailerd.config import load
from mailerd.daemon import run


def main() -> None:
    path = sys.argv[sys.argv.index("--config") + 1]
    config = load(path, environ=os.environ)
    logs.set_up(config.log)
    sys.exit(asyncio.run(run(config, path)))
