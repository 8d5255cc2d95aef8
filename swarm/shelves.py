"""What a node keeps of the DHT for others, and how it reads what they send: bounded, and nobody's place taken.

hivemind's own storage lets a key grow beyond what an answer can hold; it forgets a record early when an older one of
the same peer is sent again; and it answers from a cache that anyone may fill with one record of their own in place of
all others. Here a key that is full takes no new names, and those that are in it stay for as long as they renew.
"""

import heapq
from collections import Counter
from typing import Any

import msgpack
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils import MSGPackSerializer
from hivemind.utils.timed_storage import TimedStorage, get_dht_time

from swarm.unpacking import unpack

__all__ = ["DICTIONARY", "NoCache", "PlainSerializer", "Shelves", "items_in"]

DICTIONARY = 0x50  # hivemind's msgpack extension for [maxsize, latest expiration, [[subkey, value, expiration], ...]]
MAX_KEYS = 4096
MAX_NAMES = 32_768  # under all keys
MAX_KEY_BYTES = 3 << 20  # under one key: an answer has to fit into 4 MiB
MAX_PLACES = 16  # keys under which one name may be: a model's, the index, and those of runs
RECOUNT = 1.0  # seconds
MAX_SENT = 256  # records under one key that somebody else sends to a new node; the rest come with their peers


class Shelves(DHTLocalStorage):  # type: ignore[misc]  # hivemind is untyped
    """Dictionaries alone: a value without a name is not kept. Records have been checked."""

    def __init__(self) -> None:
        super().__init__()
        self._counted = 0.0  # when what follows was right; what ended since then is still in it
        self._bytes: dict[DHTID, int] = {}
        self._places: Counter[Any] = Counter()  # keys of each name
        self._names = 0  # under all keys

    def store(self, key: DHTID, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: Any, value: bytes, expiration_time: float) -> bool:
        """Whether it is kept now: not where it has ended, nothing about it is new, or there is no room."""
        held = self.get(key)
        shelf = DictionaryDHTValue() if held is None else held.value
        known = shelf.get(subkey)
        if expiration_time < get_dht_time() or (known is not None and known.expiration_time >= expiration_time):
            return False
        if known is None and not self._has_room(key, subkey, len(value)):
            return False
        shelf.store(subkey, value, expiration_time)
        self._bytes[key] = self._bytes.get(key, 0) + len(value) - (0 if known is None else len(known.value))
        if known is None:
            self._places[subkey] += 1
            self._names += 1
        if held is None or expiration_time > held.expiration_time:
            TimedStorage.store(self, key, shelf, expiration_time)
        _compact(shelf)
        _compact(self)
        return True

    def _has_room(self, key: DHTID, name: Any, size: int) -> bool:
        """What has ended meanwhile is counted out when there seems to be none, once a second at most."""
        if self._fits(key, name, size):
            return True
        if get_dht_time() < self._counted + RECOUNT:
            return False
        self._count()
        return self._fits(key, name, size)

    def _fits(self, key: DHTID, name: Any, size: int) -> bool:
        return (
            (key in self._bytes or len(self._bytes) < MAX_KEYS)
            and self._places.get(name, 0) < MAX_PLACES
            and self._names < MAX_NAMES
            and self._bytes.get(key, 0) + size <= MAX_KEY_BYTES
        )

    def _count(self) -> None:
        self._counted = get_dht_time()
        self._bytes, self._places = {}, Counter()
        for key, (shelf, _) in list(self.items()):
            entries = list(shelf.items())
            self._bytes[key] = sum(len(value) for _, (value, _) in entries)
            self._places.update(name for name, _ in entries)
        self._names = self._places.total()


class NoCache(DHTLocalStorage):  # type: ignore[misc]
    """Nothing is kept beside what a node is there for."""

    def store(self, *_: Any, **__: Any) -> bool:
        return False

    def store_subkey(self, *_: Any, **__: Any) -> bool:
        return False


class PlainSerializer(MSGPackSerializer):  # type: ignore[misc]
    """Reads what strangers send: plain values, or one dictionary of them. Raises ValueError."""

    @classmethod
    def loads(cls, buf: bytes) -> Any:
        items = items_in(buf, MAX_SENT)
        if items is None:
            return unpack(buf)
        with DictionaryDHTValue().freeze() as dictionary:
            for name, value, expiration in items:
                dictionary.store(name, value, expiration)
        return dictionary


def items_in(packed: bytes, most: int) -> list[tuple[str, bytes, float]] | None:
    """The first `most` good entries of a stranger's packed dictionary; None where it is none. Raises ValueError."""
    try:
        outer = msgpack.unpackb(packed, max_array_len=0, max_map_len=0)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    if not isinstance(outer, msgpack.ExtType) or outer.code != DICTIONARY:
        return None
    content = unpack(outer.data)
    if not isinstance(content, list) or len(content) != 3 or not isinstance(content[2], list):
        raise ValueError("a dictionary of the DHT is a list of three")
    return [(entry[0], entry[1], entry[2]) for entry in content[2][:most] if _is_good(entry)]


def _is_good(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    return isinstance(entry[0], str) and isinstance(entry[1], bytes) and isinstance(entry[2], float)


def _compact(storage: TimedStorage) -> None:
    """Every renewal leaves its old expiration behind in the heap."""
    if len(storage.expiration_heap) > 2 * len(storage.data) + 16:
        storage.expiration_heap = list(storage.key_to_heap.values())
        heapq.heapify(storage.expiration_heap)
