"""Private swarms for tests: an owner, and invites that they have made."""

import time

from swarm.invites import Invite, Role

HOUR = 3600.0


def owner() -> Invite:
    return Invite.found()


def invited(by: Invite, role: Role = Role.USE, lasting: float = HOUR) -> Invite:
    """`lasting`: seconds from now."""
    return by.invite(role, time.time() + lasting)
