"""LLVM code that takes rows which decode through one block after another, in one call.

It calls what `swarm.packed.code` and `peers.decode_code` describe, with the same results to the last bit.
"""

from types import SimpleNamespace

from llvmlite import ir

from peers.decode_code import ATTEND, STORE
from peers.stack import ARGUMENTS, THREADS, Shape
from swarm.jit.builder import FLOAT, I32, I64, POINTER, VOID, Code, Value, constant, function, i64
from swarm.jit.compiler import LANES
from swarm.jit.threads import declared
from swarm.packed.code import KINDS as PRODUCT
from swarm.packed.levels import GROUP

__all__ = ["module"]

# Addresses, in a block's line.
BLOCK = ("norm", "joined", "out", "second_norm", "wide", "down", "keys", "values")


def module(shape: Shape, product: str, store: str, attend: str) -> str:
    """`stack(ARGUMENTS, THREADS)`, which calls functions of these names."""
    whole = ir.Module("stack")
    multiplies = declared(whole, product, PRODUCT, 2)
    stores, attends = declared(whole, store, STORE, 1), declared(whole, attend, ATTEND, 1)
    names = (*ARGUMENTS, *THREADS)
    entry = function(whole, "stack", VOID, [*[I64] * len(ARGUMENTS), *[I32] * len(THREADS)])
    own = SimpleNamespace(**dict(zip(names, entry.args, strict=True)))
    code = Code(entry.append_basic_block())
    heads, both = shape.queries * shape.width, (shape.queries + 2 * shape.kv) * shape.width
    with code.loop(i64(0), own.count) as (index, _):
        at = code.offset(code.inttoptr(own.blocks, POINTER), code.mul(index, i64(8 * len(BLOCK))))
        here = SimpleNamespace(**{name: code.at(at, i64(8 * place), I64) for place, name in enumerate(BLOCK)})

        def multiply(
            x: Value,
            tiles: Value,
            out: Value,
            sizes: tuple[int, int],
            threads: Value,
            *,
            norm: Value | None = None,
            add: bool = False,
            gated: bool = False,
        ) -> None:
            groups, count = i64(sizes[0] // GROUP), i64(sizes[1] // LANES)
            flags = [i64(int(flag)) for flag in (False, add, gated)]  # in fp32
            places = [x, tiles, out, own.rounded, norm or i64(0)]
            code.call(multiplies, [*places, own.rows, groups, count, *flags, own.rounding, threads])

        multiply(own.states, here.joined, own.joined, (shape.hidden, both), own.joining, norm=here.norm)
        sizes = [i64(size) for size in (shape.queries, shape.kv, shape.turned)]
        steps = [own.token_turns, own.head_turns, own.kv_head, own.storing]
        code.call(stores, [own.joined, own.pairs, here.keys, here.values, own.slots, own.rows, *sizes, *steps])
        code.call(
            attends,
            [
                *(own.joined, here.keys, here.values, own.attended, own.runs, own.starts, own.scores, own.rows),
                *(i64(shape.kv), i64(4 * both), own.kv_head, own.longest, constant(FLOAT, shape.scaling)),
                own.attending,
            ],
        )
        multiply(own.attended, here.out, own.states, (heads, shape.hidden), own.leaving, add=True)
        multiply(own.states, here.wide, own.wide, (shape.hidden, 2 * shape.inner), own.widening, norm=here.second_norm)
        multiply(own.wide, here.down, own.states, (shape.inner, shape.hidden), own.narrowing, add=True, gated=True)
    code.ret_void()
    return str(whole)
