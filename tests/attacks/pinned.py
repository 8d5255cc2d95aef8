"""`python -m tests.attacks.pinned CORES COMMAND …`: the command and all that it starts on these cores, such as 0,2."""

import os
import sys

os.sched_setaffinity(0, [int(core) for core in sys.argv[1].split(",")])
os.execvp(sys.argv[2], sys.argv[2:])
