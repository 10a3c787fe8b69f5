"""The old name of `xrun.supervisor.entrypoint`: machines of running jobs start it by this one."""

import sys

from .supervisor.entrypoint import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
