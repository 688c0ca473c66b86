"""`python -m services.cli.tied PID COMMAND ...`: a command that the kernel kills with its parent, the process PID.

It is no command of the user's: a pipeline starts its stages so. It must not know what a command does.
"""

import sys

from services.cli.__main__ import main
from services.processes.lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
