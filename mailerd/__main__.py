"""`python -m mailerd`: the command line, and the workers that the daemon starts."""

import sys

if sys.argv[1:] == ["worker"]:  # internal: without the command line's imports in every worker's memory
    sys.modules["rich"] = None  # type: ignore[assignment]  # structlog takes it along if it can: 5 MB for coloured traces
    from mailerd.worker import main
else:
    from mailerd.cli import main

main()
