"""The frames of fine-tuning: one hop at a time, asked by the client and answered to it.

A *micro-batch* is some sequences that pass a hop together. Going forward it leaves its outputs; coming backward it
brings the gradient of those and leaves the gradients of its inputs and of the adapters that took part. A hop may keep
what it needs to go backward; where it kept nothing it says so (`Missing`) and is given the inputs again, so that peers
hold no state which could be lost.

| message   | way          | meaning                                                                     |
|-----------|--------------|-----------------------------------------------------------------------------|
| Train     | client → hop | fine-tune through blocks `hop`; answered by Ready, Busy or Fault            |
| Adapter   | client → hop | tensors that change some modules of one block, named by their content      |
| Forward   | client → hop | hidden states of a micro-batch; answered by Passed                          |
| Backward  | client → hop | gradients of what Passed brought; answered by Gradients, or by Missing      |
| Collect   | client → hop | what Backwards with its `id` added up; answered by Gradients, or by Missing |
| Passed    | hop → client | the outputs                                                                 |
| Gradients | hop → client | of the inputs, then of the adapters' tensors                                |
| Missing   | hop → client | the hop has not, or no longer, what a frame builds on: send it again with it |

All belong to a session, which ends with Close, Fault, or the stream.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import Any, ClassVar, Self

import msgpack

from swarm import fields
from swarm.errors import UsageError, WireError
from swarm.ids import Digest, SessionId, Span
from swarm.wire import Frame, encode

__all__ = [
    "ADAPTER_KINDS",
    "Adapter",
    "AdapterKey",
    "AdapterKeys",
    "Backward",
    "Collect",
    "Forward",
    "Gradients",
    "MicroBatch",
    "Missing",
    "PackedAdapter",
    "Passed",
    "TensorSpec",
    "Train",
    "TrainingMessage",
    "Tuned",
    "adapter_digest",
    "adapter_key",
    "pack_keys",
    "read_keys",
]

MAX_SEQUENCES = 1024  # of one micro-batch
MAX_TUNED = 256  # modules of one block
MAX_TENSORS = 8  # of one tuned module
MAX_DIMS = 4
MAX_SIZE = 1 << 24  # of one dimension
KEY_BYTES = 32
MAX_ID = 1 << 62
ANY_CODEC = fields.CODECS + fields.GRADIENT_CODECS
DIGEST_BYTES = 16  # a lying peer can compute anything, so a digest has to tell apart only what is honest

ADAPTER_KINDS = ("lora", "ia3", "ia3-input", "prefix")  # what `Tuned.kind` may be
TENSOR_DTYPES = ("fp32", "bf16", "fp16")
ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}

AdapterKey = bytes  # 32 bytes: a digest of what an Adapter says, without its session
AdapterKeys = tuple[tuple[int, AdapterKey], ...]  # by block of the model


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as it lies in a body: little-endian, row after row."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEMSIZE[self.dtype]

    def pack(self) -> list[Any]:
        return [self.name, self.dtype, list(self.shape)]

    @classmethod
    def parse(cls, value: object) -> Self:
        entry = fields.entries(value, "a tensor", 3)
        if len(entry) != 3 or entry[1] not in TENSOR_DTYPES:
            raise WireError(f"a tensor is a name, a dtype of {', '.join(TENSOR_DTYPES)}, and a shape")
        shape = tuple(
            fields.whole(n, 0, MAX_SIZE, "a dimension") for n in fields.entries(entry[2], "a shape", MAX_DIMS)
        )
        return cls(fields.text(entry[0], "a tensor's name", 64), entry[1], shape)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What an adapter does to the module at `path` of a block, such as "self_attn.q_proj"; a prefix has no path.
    `dropout` is the share of the input that is dropped while training."""

    path: str
    kind: str
    scaling: float
    dropout: float
    tensors: tuple[TensorSpec, ...]

    def pack(self) -> list[Any]:
        return [self.path, self.kind, self.scaling, self.dropout, [tensor.pack() for tensor in self.tensors]]

    @classmethod
    def parse(cls, value: object) -> Self:
        entry = fields.entries(value, "a tuned module", 5)
        if len(entry) != 5 or entry[1] not in ADAPTER_KINDS:
            raise WireError(f"a tuned module is a path, a kind of {', '.join(ADAPTER_KINDS)}, numbers and tensors")
        path, kind, scaling, dropout, tensors = entry
        if not isinstance(scaling, float) or not isfinite(scaling):
            raise WireError("an adapter's scaling is a finite number")
        if not isinstance(dropout, float) or not 0 <= dropout < 1:
            raise WireError("an adapter's dropout is a number from 0 to below 1")
        specs = tuple(TensorSpec.parse(tensor) for tensor in fields.entries(tensors, "tensors", MAX_TENSORS))
        return cls(fields.text(path, "a module's path", 256), kind, scaling, dropout, specs)


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """The adapter of one block as it travels; its tensors are `specs`, one after another."""

    key: AdapterKey
    tuned: tuple[Tuned, ...]
    body: bytes

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(tensor for module in self.tuned for tensor in module.tensors)

    def addressed(self, session: SessionId) -> "Adapter":
        """The frame that brings it."""
        return Adapter(session, self.key, self.tuned, self.body)


@dataclass(frozen=True, slots=True)
class Train:
    """`codec`: how hidden states and their gradients travel where a frame does not say otherwise."""

    kind: ClassVar[str] = "train"
    session: SessionId
    model: Digest
    hop: Span
    codec: str

    def pack(self) -> bytes:
        hop = [self.hop.start, self.hop.end]
        return encode(
            {"kind": self.kind, "session": self.session, "model": self.model, "hop": hop, "codec": self.codec}
        )

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        start, end = fields.wholes(fields.get(header, "hop"), 2, "a hop")
        try:
            hop = Span(start, end)
        except UsageError as error:
            raise WireError(str(error)) from None
        model = Digest(fields.text(fields.get(header, "model"), "a digest", 64))
        return cls(fields.session_of(header), model, hop, fields.codec_of(header))


@dataclass(frozen=True, slots=True)
class Adapter:
    """Tensors of `tuned`, one after another in `body`. Whoever gets it checks that `key` is its digest."""

    kind: ClassVar[str] = "adapter"
    session: SessionId
    key: AdapterKey
    tuned: tuple[Tuned, ...]
    body: bytes | memoryview

    def pack(self) -> bytes:
        tuned = [module.pack() for module in self.tuned]
        return encode({"kind": self.kind, "session": self.session, "key": self.key, "tuned": tuned}, self.body)

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        tuned = tuple(Tuned.parse(e) for e in fields.entries(fields.get(header, "tuned"), "tuned modules", MAX_TUNED))
        if sum(tensor.nbytes for module in tuned for tensor in module.tensors) != frame.body.nbytes:
            raise WireError("an adapter's tensors are not as large as its body")
        return cls(fields.session_of(header), _key(fields.get(header, "key")), tuned, frame.body)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What Forward and Backward say alike. `lengths`: of the sequences, which lie one after another. `adapters`: by
    block of the model, for the blocks that have one. `seed`: of what is dropped; None outside of training."""

    id: int
    lengths: tuple[int, ...]
    adapters: AdapterKeys = ()
    seed: int | None = None

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def header(self) -> dict[str, Any]:
        adapters = pack_keys(self.adapters)
        return {"id": self.id, "lengths": list(self.lengths), "adapters": adapters, "seed": self.seed}

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        lengths = tuple(
            fields.whole(n, 1, fields.MAX_POSITION, "a sequence's length")
            for n in fields.entries(fields.get(header, "lengths"), "lengths", MAX_SEQUENCES)
        )
        if not lengths:
            raise WireError("a micro-batch has at least one sequence")
        seed = header.get("seed")
        if seed is not None:
            seed = fields.whole(seed, 0, (1 << 63) - 1, "a seed")
        return cls(_id(header), lengths, read_keys(header.get("adapters", [])), seed)


@dataclass(frozen=True, slots=True)
class Forward:
    """`body`: hidden states `[tokens, hidden]`. `keep`: a Backward will follow. `answer`: the codec of what comes
    back."""

    kind: ClassVar[str] = "forward"
    session: SessionId
    batch: MicroBatch
    keep: bool
    codec: str
    body: bytes | memoryview
    answer: str | None = None

    def pack(self) -> bytes:
        header = {"kind": self.kind, "session": self.session, "keep": self.keep, "codec": self.codec}
        return encode({**header, **_given(answer=self.answer), **self.batch.header()}, self.body)

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        batch = MicroBatch.parse(frame)
        keep, codec, answer = (
            header.get("keep") is True,
            fields.codec_of(header),
            fields.codec_or_none(header, "answer"),
        )
        return cls(fields.session_of(header), batch, keep, codec, frame.body, answer)


@dataclass(frozen=True, slots=True)
class Backward:
    """`body`: the gradient of the outputs `[tokens, hidden]`, after the inputs `[tokens, hidden]` where they are
    `given`, in the codec `inputs` or `codec` too. `wanted`: the gradient of the inputs is; without it nobody learns
    before this hop. `answer`: the codec of that gradient. `into`: those of adapters are not answered, but added to
    what other micro-batches put under this id, until a Collect asks for it."""

    kind: ClassVar[str] = "backward"
    session: SessionId
    batch: MicroBatch
    given: bool
    codec: str
    body: bytes | memoryview
    wanted: bool = True
    inputs: str | None = None
    answer: str | None = None
    into: int | None = None

    def pack(self) -> bytes:
        header = {"kind": self.kind, "session": self.session, "given": self.given, "codec": self.codec}
        others = _given(inputs=self.inputs, answer=self.answer, into=self.into)
        return encode({**header, "wanted": self.wanted, **others, **self.batch.header()}, self.body)

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        batch = MicroBatch.parse(frame)
        wanted = header.get("wanted", True)
        if not isinstance(wanted, bool):
            raise WireError("whether a gradient is wanted is true or false")
        codec, answer = (
            fields.gradient_codec_of(header),
            fields.codec_or_none(header, "answer", ANY_CODEC),
        )
        into = header.get("into")
        return cls(
            fields.session_of(header),
            batch,
            header.get("given") is True,
            codec,
            frame.body,
            wanted,
            fields.codec_or_none(header, "inputs"),
            answer,
            None if into is None else fields.whole(into, 0, MAX_ID, "a sum's id"),
        )


@dataclass(frozen=True, slots=True)
class Collect:
    """Asks for the gradients of adapters that `count` micro-batches added up under `id`, after which they are
    forgotten. `codec`: of their tensors, each as one row; None for their own dtypes."""

    kind: ClassVar[str] = "collect"
    session: SessionId
    id: int
    count: int
    codec: str | None = None
    body: ClassVar[bytes] = b""

    def pack(self) -> bytes:
        header = {"kind": self.kind, "session": self.session, "id": self.id, "count": self.count}
        return encode({**header, **_given(codec=self.codec)})

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        codec = fields.codec_or_none(header, "codec", fields.GRADIENT_CODECS)
        count = fields.whole(fields.get(header, "count"), 1, MAX_ID, "a number of micro-batches")
        return cls(fields.session_of(header), _id(header), count, codec)


@dataclass(frozen=True, slots=True)
class Passed:
    """`body`: what left the hop's last block `[tokens, hidden]`. `seconds`: that it took."""

    kind: ClassVar[str] = "passed"
    session: SessionId
    id: int
    codec: str
    body: bytes | memoryview
    seconds: float = 0.0

    def pack(self) -> bytes:
        header = {"kind": self.kind, "session": self.session, "id": self.id, "codec": self.codec}
        return encode({**header, "seconds": self.seconds}, self.body)

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        seconds = _seconds(header.get("seconds", 0.0))
        return cls(fields.session_of(header), _id(header), fields.codec_of(header), frame.body, seconds)


@dataclass(frozen=True, slots=True)
class Gradients:
    """One of several: the first brings the gradient of the inputs `[tokens, hidden]`, or nothing where that is not
    wanted, each further one those of the tensors of one block's adapter, in its order: in their own dtypes, or, when
    that was asked for, each as one row in `codec`. The last has `more` = False."""

    kind: ClassVar[str] = "gradients"
    session: SessionId
    id: int
    block: int | None  # None: of the inputs
    more: bool
    codec: str
    body: bytes | memoryview
    seconds: float = 0.0

    def pack(self) -> bytes:
        header = {"kind": self.kind, "session": self.session, "id": self.id, "block": self.block, "more": self.more}
        return encode({**header, "codec": self.codec, "seconds": self.seconds}, self.body)

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        block = header.get("block")
        if block is not None:
            block = fields.whole(block, 0, 1 << 16, "a block")
        return cls(
            fields.session_of(header),
            _id(header),
            block,
            header.get("more") is True,
            fields.gradient_codec_of(header),
            frame.body,
            _seconds(header.get("seconds", 0.0)),
        )


@dataclass(frozen=True, slots=True)
class Missing:
    """`adapters`: of those that the frame named, the ones that are not here; none where it is the forward pass. It
    answers an Open too, whose `id` is 0; the session is then not open yet."""

    kind: ClassVar[str] = "missing"
    session: SessionId
    id: int
    adapters: tuple[AdapterKey, ...] = field(default=())

    def pack(self) -> bytes:
        return encode({"kind": self.kind, "session": self.session, "id": self.id, "adapters": list(self.adapters)})

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        adapters = tuple(_key(entry) for entry in fields.entries(header.get("adapters", []), "adapters"))
        return cls(fields.session_of(header), _id(header), adapters)


TrainingMessage = Train | Adapter | Forward | Backward | Collect | Passed | Gradients | Missing
TRAINING: Sequence[type[TrainingMessage]] = (Train, Adapter, Forward, Backward, Collect, Passed, Gradients, Missing)


def adapter_key(tuned: Sequence[Tuned], body: bytes | memoryview) -> AdapterKey:
    """The name of an adapter of one block."""
    digest = hashlib.blake2b(msgpack.packb([module.pack() for module in tuned]), digest_size=KEY_BYTES)
    digest.update(body)
    return digest.digest()


def adapter_digest(keys: AdapterKeys) -> str:
    """The name of an adapter of a whole model, hex: two peers that host the same one agree on it."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for block, key in sorted(keys):
        digest.update(block.to_bytes(4, "little") + key)
    return digest.hexdigest()


def pack_keys(keys: AdapterKeys) -> list[Any]:
    return [[block, key] for block, key in keys]


def read_keys(value: object) -> AdapterKeys:
    """Each block is named once. Raises WireError."""
    found = tuple(_named_key(entry) for entry in fields.entries(value, "adapters"))
    if len({block for block, _ in found}) != len(found):
        raise WireError("a block has one adapter")
    return found


def _id(header: Any) -> int:
    return fields.whole(fields.get(header, "id"), 0, MAX_ID, "a micro-batch's id")


def _given(**values: object) -> dict[str, object]:
    """Of the fields, those that are there."""
    return {name: value for name, value in values.items() if value is not None}


def _key(value: object) -> AdapterKey:
    if not isinstance(value, bytes) or len(value) != KEY_BYTES:
        raise WireError(f"an adapter's key is {KEY_BYTES} bytes")
    return value


def _named_key(value: object) -> tuple[int, AdapterKey]:
    entry = fields.entries(value, "a block's adapter", 2)
    if len(entry) != 2:
        raise WireError("a block's adapter is a block and a key")
    return fields.whole(entry[0], 0, 1 << 16, "a block"), _key(entry[1])


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise WireError("a time is a number of seconds")
    return float(value)
