"""What a volunteer asks for: the options of `swarm serve`, checked."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from peers.pausing import Condition
from routing.placement import REPLICAS
from swarm.entrance import HIGHEST_PORT
from swarm.errors import UsageError
from swarm.ids import ADAPTER_NAME, MAX_ADAPTERS, Span
from swarm.invites import Invite

__all__ = [
    "DEVICES",
    "PRECISIONS",
    "QUANTIZATIONS",
    "REACHES",
    "ServeSettings",
    "parse_adapters",
    "parse_devices",
    "parse_precision",
]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
QUANTIZATIONS = ("auto", "none", "bf16", "int8", "int4", "nf4")
_LONG_NAMES = {"float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
REACHES = ("auto", "direct", "relayed")
DEVICES = "auto, cpu, cuda, cuda:N or mps"
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")
_LONGEST_NAME = 64
LONGEST_DRAIN = 86_400  # s


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """The options of one serving peer. Raises UsageError where they don't go together; None means "you choose".
    `adapters` to host: names, and the folders or hub ids that have them."""

    model: str
    initial_peers: tuple[str, ...] = ()
    new_swarm: bool = False
    invite: Invite | None = None  # to a private swarm
    pause_when: tuple[Condition, ...] = ()
    private: bool = False  # the invite is the owner's
    blocks: Span | None = None
    num_blocks: int | None = None
    stay: bool = False  # at the blocks that it takes first
    host: str = "0.0.0.0"
    port: int | None = None
    announce: tuple[str, ...] = ()
    reach: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    quantization: str = "auto"
    threads: int | None = None
    max_memory: int | None = None  # bytes, of the machine's
    max_vram: int | None = None  # bytes, of a GPU's
    kv_tokens: int | None = None
    adapters: tuple[tuple[str, str], ...] = ()
    training_share: float = 0.1  # of the device's time, while others generate
    identity: Path | None = None
    data: Path  # where identities are kept when `identity` names none
    cache: Path
    revision: str | None = None
    public_name: str = ""
    drain_limit: float = 30.0  # s
    standby: bool = False  # serves only blocks that have too few peers
    standby_below: int = REPLICAS  # peers

    def __post_init__(self) -> None:
        if self.new_swarm and self.initial_peers:
            raise UsageError("--new-swarm begins a swarm and --initial-peers joins one: give only one of them")
        if not (self.new_swarm or self.initial_peers):
            raise UsageError(
                "which swarm? Join one with --initial-peers and the address of a peer in it, "
                "or begin your own with --new-swarm"
            )
        if self.blocks is not None and self.num_blocks is not None:
            raise UsageError("--blocks says which blocks and --num-blocks how many: give only one of them")
        if self.standby and self.new_swarm:
            raise UsageError("--standby is for a swarm that others serve: join one with --initial-peers")
        _check_range("--standby-below", self.standby_below, 1)
        _check_range("--num-blocks", self.num_blocks, 1)
        _check_range("--port", self.port, 0, HIGHEST_PORT)
        _check_range("--threads", self.threads, 1)
        _check_range("--kv-cache-tokens", self.kv_tokens, 1)
        if not 0 <= self.drain_limit <= LONGEST_DRAIN:
            raise UsageError(f"--drain-limit is 0 to {LONGEST_DRAIN} seconds, not {self.drain_limit:g}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"--dtype is one of {', '.join(PRECISIONS)}, not '{self.precision}'")
        if self.quantization not in QUANTIZATIONS:
            raise UsageError(f"--quantization is one of {', '.join(QUANTIZATIONS)}, not '{self.quantization}'")
        if self.reach not in REACHES:
            raise UsageError(f"--reach is one of {', '.join(REACHES)}, not '{self.reach}'")
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(f"--device is {DEVICES}, not '{self.device}'")
        if not 0 <= self.training_share <= 1:
            raise UsageError(f"--training-share is between 0 (none) and 1, not {self.training_share:g}")
        if len(self.public_name) > _LONGEST_NAME:
            raise UsageError(f"--public-name has at most {_LONGEST_NAME} characters")
        _check_adapters([name for name, _ in self.adapters])


def parse_precision(text: str) -> str:
    """`fp32` for `float32`, and so on; unknown names stay as they are, for ServeSettings to refuse."""
    name = text.strip().lower().removeprefix("torch.")
    return _LONG_NAMES.get(name, name)


def parse_devices(text: str) -> tuple[str, ...]:
    """One as it is, for ServeSettings to check, or those of a list. Raises UsageError for a list that can't be."""
    if "," not in text:
        return (text,)
    names = ["cuda:0" if name.strip() == "cuda" else name.strip() for name in text.split(",")]
    for name in names:
        if name == "auto" or not _DEVICE.fullmatch(name):
            raise UsageError(
                f"--device is {DEVICES}, or several of these without auto, as in cuda:0,cuda:1; not '{text}'"
            )
        if name != "cpu" and names.count(name) > 1:
            raise UsageError(f"--device {text}: {name} is there twice, and one peer uses it well: name it once")
    return tuple(names)


def parse_adapters(values: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """NAME=SOURCE, or a source alone, which is then called as its last part is."""
    return tuple(map(_parse_adapter, values))


def _parse_adapter(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if equals and source and ADAPTER_NAME.fullmatch(name):
        return name, source
    return text.rstrip("/").rpartition("/")[2], text


def _check_adapters(names: list[str]) -> None:
    for name in names:
        if ADAPTER_NAME.fullmatch(name) is None:
            raise UsageError(
                f"--adapters: '{name}' can't be a name, which is at most 32 letters, digits, dots, dashes and "
                "underscores: give one, as in --adapters NAME=FOLDER"
            )
        if names.count(name) > 1:
            raise UsageError(f"--adapters: two are called '{name}': give one another name, as in NAME=FOLDER")
    if len(names) > MAX_ADAPTERS:
        raise UsageError(f"--adapters: a peer hosts at most {MAX_ADAPTERS}, not {len(names)}")


def _check_range(option: str, value: int | None, low: int, high: int | None = None) -> None:
    if value is None:
        return
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UsageError(f"{option} is a whole number of {limits}, not {value}")
