"""`python -m swarm`: the same as the `swarm` command, for where it is not on the PATH."""

from swarm.cli import main

if __name__ == "__main__":  # processes that are spawned import this file again
    main()
