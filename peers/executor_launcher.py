"""Becomes the executor process: `python -m peers.executor_launcher FD`.

Ctrl-C goes to everyone in the terminal's foreground group, and what it means is up to the network process. So it is
ignored from the start, before the seconds in which torch is imported.
"""

import signal
import socket
import sys
from importlib import import_module

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_module("peers.executor").run(socket.socket(fileno=int(sys.argv[1])))
