"""How threads that compute together wait for each other, told to OpenMP before it is loaded.

By default they spin for milliseconds, which makes every batch ten and more times slower as soon as anything else wants
a core. Asleep at once, they take longer to wake than many a product takes: *measured* with two threads, 30 blocks of
SmolLM2 in int4 and one row, 20 to 27 ms a step, where one thread alone takes 7. Some 20 µs of spinning between the two
bring 5.4 to 7.
"""

from collections.abc import MutableMapping

__all__ = ["BRIEF", "wait_briefly"]

# The first is for all kinds of OpenMP, the second overrides it in GCC's, which torch brings on Linux.
BRIEF = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Of this process and those that it starts, unless the user has said how they shall wait."""
    if not BRIEF.keys() & environment.keys():
        environment.update(BRIEF)
