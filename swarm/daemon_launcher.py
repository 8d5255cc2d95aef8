"""Becomes the libp2p daemon: `python daemon_launcher.py P2PD ARGUMENTS…`, run as a file of its own.

hivemind starts the daemon in its parent's process group, so a Ctrl-C in the terminal would end it before its peer has
said goodbye. And on Linux the daemon should end with its parent, also when that is killed.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

if __name__ == "__main__":
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            sys.exit(1)
    os.setpgid(0, 0)
    os.execv(sys.argv[1], sys.argv[1:])
