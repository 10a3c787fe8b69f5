"""The old name of `xrun.supervisor.entrypoint`: machines of running jobs start it by this one."""

import sys

from .supervisor.entrypoint import main
from .terminal import only_text

if __name__ == "__main__":
    only_text()
    sys.exit(main(sys.argv[1]))
