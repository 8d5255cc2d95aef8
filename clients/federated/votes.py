"""Where members stand, by what they say, and which state of the run is to be taken for it."""

from collections import Counter
from collections.abc import Iterable, Set

from clients.federated.frames import Signed, digest_of, opened, sealed
from clients.federated.terms import MAX_MEMBERS, Terms
from swarm import fields
from swarm.errors import WireError
from swarm.identity import Identity
from swarm.ids import PeerId

__all__ = ["Stand", "Votes"]

Stand = tuple[int, bytes]  # the round that comes next, and the digest of the state in which it begins


class Votes:
    """A state says nothing of how it came about, and anyone can say that a run has begun. Who has learned nothing yet
    takes a state only if as many members as a round needs have signed that they stand there, some of whom may have gone
    since, or if no fewer members stand there than at the beginning. So who begins together is not led astray by one."""

    def __init__(self, terms: Terms, signed: Iterable[Signed] = ()) -> None:
        """`signed`: of an earlier time, by members who stand where this one begins."""
        self.stands: dict[PeerId, Stand] = {}
        self._terms = terms
        self._signed: dict[Stand, dict[PeerId, Signed]] = {}
        for each in signed:
            self._signed.setdefault(self._stand_of(each), {})[each.by] = each

    def adopt(self, identity: Identity, stand: Stand) -> None:
        """This member stands there now."""
        signed = sealed(identity, self._terms.key, kind="stand", round=stand[0], state=stand[1])
        self._signed.setdefault(stand, {})[signed.by] = signed
        self._prune(stand)

    def heard(self, peer: PeerId, stand: Stand, signed: Iterable[Signed], mine: Stand) -> None:
        """Raises WireError for signatures that are of something else."""
        self.stands[peer] = stand
        known = self._signed.setdefault(stand, {})
        for each in signed:
            if each.by in known or len(known) >= MAX_MEMBERS:
                continue
            if self._stand_of(each) != stand:
                raise WireError(f"{peer} says where others stand, and shows that they stand elsewhere")
            known[each.by] = each
        self._prune(mine)

    def retain(self, peers: Set[PeerId]) -> None:
        self.stands = {peer: stand for peer, stand in self.stands.items() if peer in peers}

    def signed(self, stand: Stand) -> list[Signed]:
        """As many as it takes to convince others."""
        return list(self._signed.get(stand, {}).values())[: self._terms.min_members]

    def winner(self, mine: Stand, present: Set[PeerId]) -> Stand:
        """Where most stand, of what is not behind `mine`; who has learned nothing yet does not vote against who has."""
        seen = [mine, *(self.stands[peer] for peer in present)]
        seen = [stand for stand in seen if stand[0] >= mine[0] and (mine[0] or self._is_credible(stand, seen))]
        begun = [stand for stand in seen if stand[0]] or seen
        return min(Counter(begun).items(), key=lambda item: (-item[1], -item[0][0], item[0][1]))[0]

    def is_behind(self, mine: Stand, present: Set[PeerId]) -> bool:
        """Whether a round from `mine` comes too late."""
        if not mine[0]:
            return self.winner(mine, present) != mine
        ahead = Counter(stand for peer in present if (stand := self.stands[peer]) != mine and stand[0] >= mine[0])
        return any(2 * count > len(present) + 1 for count in ahead.values())

    def _is_credible(self, stand: Stand, seen: list[Stand]) -> bool:
        there, new = seen.count(stand), sum(not number for number, _ in seen)
        return not stand[0] or there >= new or len(self._signed.get(stand, ())) >= self._terms.min_members

    def _stand_of(self, signed: Signed) -> Stand:
        said = opened(signed, self._terms.key)
        if said.get("kind") != "stand":
            raise WireError(f"{signed.by} has signed something else")
        return fields.whole(said.get("round"), 0, self._terms.rounds, "a round"), digest_of(said.get("state"))

    def _prune(self, mine: Stand) -> None:
        used = {mine, *self.stands.values()}
        self._signed = {stand: signed for stand, signed in self._signed.items() if stand in used}
