"""What a node keeps for others: nobody is pushed out, and nobody takes more than there is."""

import time

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from swarm import kademlia
from swarm.shelves import MAX_KEY_BYTES, MAX_KEYS, MAX_PLACES, MAX_SENT, NoCache, PlainSerializer, Shelves, items_in

KEY = DHTID.generate("swarm/1/peers")
SIZE = 3000
LATER = 300.0


def names(shelves: Shelves, key: DHTID = KEY) -> set[str]:
    held = shelves.get(key)
    return set() if held is None else {name for name, _ in held.value.items()}


def test_a_key_keeps_the_newest_of_each_name() -> None:
    shelves, now = Shelves(), time.time()
    assert shelves.store_subkey(KEY, "ada", b"1", now + 10)
    assert shelves.store_subkey(KEY, "ada", b"2", now + 20)
    assert shelves.store(KEY, b"3", now + 30, subkey="bob")
    assert {name: value for name, (value, _) in shelves.get(KEY).value.items()} == {"ada": b"2", "bob": b"3"}


def test_an_older_one_sent_again_does_not_end_the_newer() -> None:
    shelves, now = Shelves(), time.time()
    assert shelves.store_subkey(KEY, "ada", b"new", now + LATER)
    for _ in range(3):
        assert not shelves.store_subkey(KEY, "ada", b"old", now + 0.02)
    while time.time() < now + 0.05:
        pass
    assert names(shelves) == {"ada"}


def test_a_flood_of_names_finds_a_full_key_and_pushes_nobody_out() -> None:
    shelves, now = Shelves(), time.time()
    assert shelves.store_subkey(KEY, "ada", bytes(SIZE), now + 10)
    taken = sum(shelves.store_subkey(KEY, f"fake{n}", bytes(SIZE), now + LATER) for n in range(1100))
    assert (taken + 1) * SIZE <= MAX_KEY_BYTES < (taken + 2) * SIZE
    assert shelves.store_subkey(KEY, "ada", bytes(SIZE), now + 20), "who is there may renew"
    assert "ada" in names(shelves)
    answer = MSGPackSerializer.dumps(shelves.get(KEY).value)
    assert len(answer) < 4 << 20, "so that it fits into one answer"


def test_a_name_has_so_many_places_and_a_node_so_many_keys() -> None:
    shelves, now = Shelves(), time.time()
    mine = [shelves.store_subkey(DHTID(n), "mallory", b"1", now + LATER) for n in range(MAX_PLACES + 3)]
    assert mine == [True] * MAX_PLACES + [False] * 3
    for n in range(MAX_PLACES, MAX_KEYS):
        shelves.store_subkey(DHTID(n), f"name{n % 1000}", b"1", now + LATER)
    assert len(shelves) == MAX_KEYS
    assert not shelves.store_subkey(KEY, "late", b"1", now + 2 * LATER)
    assert shelves.store_subkey(DHTID(1), "late", b"1", now + LATER), "keys that are there take more names"


def test_the_same_again_and_again_takes_no_memory() -> None:
    shelves, now = Shelves(), time.time()
    for n in range(1000):
        shelves.store_subkey(KEY, "mallory", b"1", now + LATER + n / 1000)
        shelves.store_subkey(KEY, "mallory", b"1", now + LATER)
    heaps = (shelves.expiration_heap, shelves.get(KEY).value.expiration_heap)
    assert max(map(len, heaps)) <= 2 + 16 + 1


def test_a_value_without_a_name_is_not_kept_and_nothing_is_cached() -> None:
    now = time.time()
    assert not Shelves().store(KEY, b"1", now + LATER)
    assert not NoCache().store_subkey(KEY, "ada", b"1", now + LATER)
    assert not NoCache().store(KEY, b"1", now + LATER)


def test_a_dictionary_is_read_as_it_was_written_and_no_further_than_may_be() -> None:
    dictionary = DictionaryDHTValue()
    for n in range(MAX_SENT + 5):
        dictionary.store(f"name{n}", b"1", time.time() + LATER)
    read = PlainSerializer.loads(MSGPackSerializer.dumps(dictionary))
    assert isinstance(read, DictionaryDHTValue)
    assert len(read) == MAX_SENT
    assert PlainSerializer.loads(MSGPackSerializer.dumps("ada")) == "ada"


@pytest.mark.parametrize("code", [0x40, 0x51])
def test_other_extensions_are_refused(code: int) -> None:
    with pytest.raises(ValueError, match="ext"):
        PlainSerializer.loads(msgpack.packb(msgpack.ExtType(code, b"\x90")))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_value_or_a_value_error(data: bytes, wrapped: bool) -> None:
    packed = msgpack.packb(msgpack.ExtType(0x50, data)) if wrapped else data
    try:
        PlainSerializer.loads(packed)
        items_in(packed, 10)
    except ValueError:
        return


def test_no_node_crowds_out_what_the_others_say() -> None:
    liar = [b"x%d" % n for n in range(20_000)]
    found = kademlia._in_turn([liar, [b"honest"], liar[::-1]])
    assert len(found) == 8192
    assert found.index(b"honest") == 1
