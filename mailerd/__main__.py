"""`python -m mailerd`: the command line, and the workers that the daemon starts."""

import sys

if sys.argv[1:] == ["worker"]:  # internal: without the command line's imports in every worker's memory
    from mailerd.worker import main
else:
    from mailerd.cli import main

main()
