import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.pipe import Kind, Packet, PacketReader, pack
from swarm.errors import WireError
from swarm.ids import PeerId
from swarm.wire import MAX_FRAME

packets = st.builds(Packet, st.sampled_from(Kind), st.text(max_size=20).map(PeerId), st.binary(max_size=50))


@given(st.lists(packets), st.integers(1, 40))
def test_packets_come_out_as_they_went_in_however_they_are_cut(sent: list[Packet], cut: int) -> None:
    data = b"".join(pack(packet.kind, packet.content, packet.peer) for packet in sent)
    reader = PacketReader()
    got = [packet for at in range(0, len(data), cut) for packet in reader.feed(data[at : at + cut])]
    assert got == sent


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x00",  # shorter than a head
        b"\xff\xff\xff\xff",  # more than any frame
        b"\x03\x00\x00\x00\x63\x00\x00",  # no such kind
        b"\x03\x00\x00\x00\x02\x05\x00",  # a peer id longer than the packet
        b"\x04\x00\x00\x00\x02\x01\x00\xff",  # a peer id that is no text
    ],
)
def test_what_makes_no_sense_is_noticed_before_it_is_waited_for(data: bytes) -> None:
    with pytest.raises(WireError):
        list(PacketReader().feed(data))


def test_what_is_over_the_limits_is_not_packed() -> None:
    with pytest.raises(WireError, match="over the limits"):
        pack(Kind.FRAME, bytes(MAX_FRAME + 1))
    with pytest.raises(WireError, match="over the limits"):
        pack(Kind.GONE, peer="p" * 600)
