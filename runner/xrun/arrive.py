"""The old name of `xrun.supervisor.arrive`: machines of running jobs start it by this one."""

import sys
from pathlib import Path

from .supervisor.arrive import arrive

if __name__ == "__main__":
    arrive(Path(sys.argv[1]).expanduser())
