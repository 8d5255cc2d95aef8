"""Floor 2, what goes wrong: failure detection, backoff, and how a broken chain is mended.

May import `swarm` and `routing`.
"""
