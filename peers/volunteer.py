"""A volunteer's machine as a peer: its parts put together, from the options to a life on the network."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from peers.arrival import arrive
from peers.choosing import Room
from peers.doorkeeper import keep_door
from peers.executor_settings import ExecutorSettings
from peers.forked import Forked
from peers.identity_lock import hold_identity
from peers.lifecycle import Lifecycle, Offer, Patience, Served
from peers.machine import Device, find_device, physical_cores
from peers.memory_budget import GPU_PLACES, BlockCost, blocks_that_fit, must_stream, readable
from peers.nearby import Nearby
from peers.pausing import keep_pausing, read_machine
from peers.ports import hold_port
from peers.precision import Precision, choose
from peers.process_executor import ProcessExecutor, WarmExecutors
from peers.profiling import profile_path, read_profile
from peers.ready import Ready, StandingBy
from peers.reconsidering import Reconsidering
from peers.settings import ServeSettings
from peers.span_memory import kv_bytes_per_token, span_bytes
from peers.thanks import ThanksBook, thanks_path
from peers.watch import View, Watch
from swarm.acquaintances import Acquaintances, file_of, ways_in
from swarm.checkpoint import Checkpoint, resolve
from swarm.door import Door
from swarm.dtypes import DTYPES
from swarm.errors import NetworkError, UsageError
from swarm.identity import Identity
from swarm.ids import Span
from swarm.kademlia import KademliaDirectory
from swarm.libp2p import Libp2pHost
from swarm.own_swarm import OwnSwarm, revocations_path
from swarm.peft_folder import check_base, find_folder, read_folder
from swarm.record import PeerRecord
from swarm.revocations import Revocations
from swarm.running import PAUSE, RESUME

__all__ = ["volunteer"]

_log = logging.getLogger(__name__)

TOLD = "it was told to"  # why it pauses


@dataclass(frozen=True, slots=True)
class _Plan:
    """What this machine will do, before it knows which blocks."""

    checkpoint: Checkpoint
    device: Device
    precision: Precision
    capacity: int  # blocks
    threads: int
    max_memory: int | None  # bytes, of the device's
    streams: bool  # whether blocks are more than fit at once
    adapters: Mapping[str, Path]  # that are hosted, by name


async def volunteer(settings: ServeSettings, view: View, forked: Forked | None = None) -> None:
    """Serves until it is cancelled; its first executor may have been `forked`. Raises SwarmError, having cleaned up,
    when it can't begin or can't go on."""
    async with AsyncExitStack() as stack:
        identity, path = stack.enter_context(hold_identity(settings.identity, settings.data))
        watch = Watch(view, ThanksBook.open(thanks_path(path), time.monotonic))
        stack.callback(watch.close)
        _log.info("identity %s from %s", identity.peer_id, path)
        plan = await _plan(settings)
        seen = file_of(settings.data, settings.initial_peers) if settings.initial_peers else None
        if seen is not None:
            settings = replace(settings, initial_peers=await ways_in(settings.initial_peers, seen))
        door = _door(settings, identity)
        port = stack.enter_context(hold_port(settings.host, settings.port, settings.data))
        host = await arrive(settings, identity, port, door)
        stack.push_async_callback(host.close)
        _log.info("joining the swarm" if settings.initial_peers else "beginning a new swarm")
        directory = await KademliaDirectory.start(
            host,
            identity,
            settings.initial_peers,
            client_mode=host.relayed,  # who reads the DHT should not have to go through a relay for it
            new_swarm=settings.new_swarm,
            acquaintances=Acquaintances(settings.initial_peers, seen),
        )
        stack.push_async_callback(directory.close)

        others = [_guard(host), watch.run()]
        if door is not None:
            others.append(await keep_door(host, directory, door, settings.initial_peers))

        def on_ready(served: Served) -> None:
            if settings.private:
                OwnSwarm(settings.data).remember(served.addresses)
            watch.begin(_ready(settings, plan, host, served), served)

        warm = WarmExecutors(forked)
        stack.push_async_callback(warm.close)

        async def on_standby(record: PeerRecord) -> None:
            watch.stand_by(_standing_by(settings, record))
            await warm.warm_up(_executor_settings(settings, plan, record.span))

        life = _life(settings, plan, host, directory, warm, on_ready, on_standby)
        if settings.pause_when:
            others.append(keep_pausing(life, settings.pause_when, read_machine()))
        others.append(Nearby(life, host.transport, directory).run())
        if settings.blocks is None and not (settings.stay or settings.standby):
            others.append(Reconsidering(life, directory).run())
        stack.enter_context(_pausing_when_told(life))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(other) for other in others]
            await life.run()
            for task in tasks:
                task.cancel()


def _door(settings: ServeSettings, identity: Identity) -> Door | None:
    if settings.invite is None:
        return None
    path = revocations_path(settings.data, settings.invite.swarm)
    return Door(settings.invite, identity.peer_id, Revocations(settings.invite.swarm, path))


@contextmanager
def _pausing_when_told(life: Lifecycle) -> Iterator[None]:
    """`swarm pause` and `swarm resume` send signals."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(PAUSE, life.pause, TOLD)
    loop.add_signal_handler(RESUME, life.resume, TOLD)
    try:
        yield
    finally:
        loop.remove_signal_handler(PAUSE)
        loop.remove_signal_handler(RESUME)


async def _guard(host: Libp2pHost) -> None:
    await host.ended()
    raise NetworkError(
        "the libp2p daemon of this peer has ended, so it can't be reached any more; start the peer again"
    )


# --- what this machine can do ----------------------------------------------------------------------------------------


async def _plan(settings: ServeSettings) -> _Plan:
    device = await find_device(settings.device)
    limit = _limit(settings, device)
    _log.info("looking for model %s", settings.model)
    checkpoint = await asyncio.to_thread(resolve, settings.model, cache=settings.cache, revision=settings.revision)
    _log.info("model %s has %d blocks; its files are in %s", checkpoint.name, checkpoint.num_blocks, checkpoint.folder)
    _check_blocks(settings, checkpoint)
    adapters, beside = await asyncio.to_thread(_adapters, settings, checkpoint)
    threads = settings.threads or physical_cores()
    cache = settings.cache.absolute()
    memory = min(device.memory, limit or device.memory)
    smallest = _block_cost(checkpoint, DTYPES["bf16"], "int4" if device.name == "cpu" else "nf4", beside)
    _capacity(settings, memory, smallest, checkpoint.num_blocks)  # before anything is read or measured
    precision = await asyncio.to_thread(
        choose, settings.precision, settings.quantization, device, checkpoint, threads=threads, cache=cache
    )
    if precision.reason:
        _log.info("computing in %s, %s", precision.name, precision.reason)
    cost = _block_cost(checkpoint, DTYPES[precision.dtype], precision.quantization, beside)
    capacity, streams = _capacity(settings, memory, cost, checkpoint.num_blocks)
    found = "are more than fit" if streams else "fit"
    _log.info("%d blocks %s in %s on %s, %s", capacity, found, precision.name, device.label, readable(memory))
    most = None if limit is None else memory
    return _Plan(checkpoint, device, precision, capacity, threads, most, streams, adapters)


def _limit(settings: ServeSettings, device: Device) -> int | None:
    """What the volunteer lets us have of the memory beside the device, bytes. Raises UsageError."""
    gpu = device.name.startswith("cuda")
    if settings.max_memory is not None and device.name != "cpu":
        instead = "--max-vram instead, or --device cpu" if gpu else "--device cpu"
        raise UsageError(f"--max-memory is for the cpu, and this peer would compute on {device.label}: give {instead}")
    if settings.max_vram is not None and not gpu:
        raise UsageError(
            f"--max-vram is for GPUs with CUDA, and this peer would compute on {device.label}: give --max-memory"
        )
    return settings.max_memory or settings.max_vram


def _adapters(settings: ServeSettings, checkpoint: Checkpoint) -> tuple[dict[str, Path], int]:
    """The folders of the adapters to host, which fit the model, and what they take in a block at most, bytes. Raises
    ModelError."""
    folders, beside = {}, 0
    for name, source in settings.adapters:
        folder = find_folder(source)
        adapter = read_folder(folder, checkpoint)
        check_base(adapter, checkpoint, cache=settings.cache)
        _log.info("hosting the adapter %s (%s) from %s", name, adapter.digest[:8], folder)
        folders[name] = folder
        beside += max(len(packed.body) for packed in adapter.blocks.values())
    return folders, beside


def _capacity(settings: ServeSettings, memory: int, cost: BlockCost, num_blocks: int) -> tuple[int, bool]:
    """How many blocks are hosted, and whether some have to be streamed: only when the volunteer has asked for both."""
    wanted = len(settings.blocks) if settings.blocks else settings.num_blocks
    if wanted and _streams(settings, memory, cost, wanted):
        return wanted, True
    return blocks_that_fit(memory, cost, num_blocks=num_blocks, wanted=wanted, kv_tokens=settings.kv_tokens), False


def _streams(settings: ServeSettings, memory: int, cost: BlockCost, wanted: int) -> bool:
    if settings.max_memory is not None:
        return must_stream(memory, cost, wanted, settings.kv_tokens)
    if settings.max_vram is not None:
        return must_stream(memory, cost, wanted, settings.kv_tokens, at_once=GPU_PLACES, flag="--max-vram")
    return False


def _check_blocks(settings: ServeSettings, checkpoint: Checkpoint) -> None:
    most = checkpoint.num_blocks
    if settings.blocks is not None and settings.blocks.end > most:
        raise UsageError(
            f"--blocks {settings.blocks}: {checkpoint.name} has blocks 0:{most}, so these are not among them"
        )
    if settings.num_blocks is not None and settings.num_blocks > most:
        raise UsageError(f"--num-blocks {settings.num_blocks}: {checkpoint.name} has only {most} blocks")


def _block_cost(checkpoint: Checkpoint, dtype: torch.dtype, quantization: str, beside: int) -> BlockCost:
    """Of the largest block, with so many bytes beside its weights; keys and values are kept in `dtype`."""
    blocks = [Span(block, block + 1) for block in range(checkpoint.num_blocks)]
    weights = max(span_bytes(checkpoint, block, dtype, quantization) for block in blocks)
    return BlockCost(weights + beside, kv_bytes_per_token(checkpoint, blocks[0], dtype))


# --- its life on the network -----------------------------------------------------------------------------------------


def _life(
    settings: ServeSettings,
    plan: _Plan,
    host: Libp2pHost,
    directory: KademliaDirectory,
    warm: WarmExecutors,
    on_ready: Callable[[Served], None],
    on_standby: Callable[[PeerRecord], Awaitable[None]],
) -> Lifecycle:
    checkpoint = plan.checkpoint
    offer = Offer(
        model=checkpoint.digest,
        model_name=checkpoint.name,
        num_blocks=checkpoint.num_blocks,
        room=Room(plan.capacity, settings.blocks, _known_block_rate(settings, plan)),
        precision=plan.precision.name,
        public_name=settings.public_name,
        trains=settings.training_share > 0,
        stays=settings.stay,
        stands_by=settings.standby_below if settings.standby else None,
    )

    async def start_executor(span: Span) -> ProcessExecutor:
        _log.info("loading blocks %s", span)
        return await warm.start(_executor_settings(settings, plan, span))

    patience = Patience(drain=settings.drain_limit)
    if settings.new_swarm:
        patience = replace(patience, settle=0.0)
    return Lifecycle(host.transport, directory, offer, start_executor, on_ready, on_standby, patience=patience)


def _known_block_rate(settings: ServeSettings, plan: _Plan) -> float | None:
    if plan.streams:
        return None  # which blocks stay, and so how fast it is, is known when they are loaded
    device = torch.device(plan.device.name)
    digest, cache = plan.checkpoint.digest, settings.cache.absolute()
    profile = read_profile(
        profile_path(digest, DTYPES[plan.precision.dtype], plan.precision.quantization, device, plan.threads, cache)
    )
    return None if profile is None else plan.capacity * profile.decode_rate(plan.capacity)


def _executor_settings(settings: ServeSettings, plan: _Plan, span: Span) -> ExecutorSettings:
    path = Path(settings.model).expanduser()  # the executor runs in another folder
    return ExecutorSettings(
        model=str(path.absolute()) if path.exists() else settings.model,
        revision=settings.revision,
        blocks=span,
        cache=str(settings.cache.absolute()),
        dtype=plan.precision.dtype,
        quantization=plan.precision.quantization,
        device=plan.device.name,
        max_memory=plan.max_memory,
        kv_tokens=settings.kv_tokens,
        threads=plan.threads,
        adapters=tuple((name, str(folder)) for name, folder in plan.adapters.items()),
    )


def _ready(settings: ServeSettings, plan: _Plan, host: Libp2pHost, served: Served) -> Ready:
    return Ready(
        peer_id=host.peer_id,
        addresses=served.addresses,
        model=settings.model,
        blocks=served.placement.span,
        num_blocks=plan.checkpoint.num_blocks,
        reason=served.placement.reason,
        precision=plan.precision.name,
        precision_reason=plan.precision.reason,
        device=plan.device.label,
        kv_tokens=served.executor.kv_tokens,
        throughput=served.executor.pace.throughput,
        streaming=served.executor.streaming,
        name=settings.public_name,
        private=settings.invite is not None,
        adapters=served.executor.adapters,
    )


def _standing_by(settings: ServeSettings, record: PeerRecord) -> StandingBy:
    return StandingBy(
        peer_id=record.peer,
        addresses=record.contact.addresses,
        model=settings.model,
        blocks=record.span,
        num_blocks=record.num_blocks,
        reason=record.reason,
        name=settings.public_name,
    )
