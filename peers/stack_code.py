"""LLVM code that takes rows which decode through one block after another, in one call.

It calls what `swarm.packed.code` and `peers.decode_code` describe, with the same results to the last bit.
"""

from types import SimpleNamespace

from llvmlite import ir

from peers.decode_code import ATTEND, STORE
from peers.stack import ARGUMENTS, LINE, THREADS, Shape
from swarm.jit.builder import FLOAT, I32, I64, POINTER, VOID, Code, Value, constant, function, i64
from swarm.jit.compiler import LANES
from swarm.jit.threads import declared
from swarm.packed.code import KINDS as PRODUCT
from swarm.packed.levels import GROUP

__all__ = ["module"]


def module(shape: Shape, product: str, store: str, attend: str) -> str:
    """`stack(ARGUMENTS, THREADS)`, which calls functions of these names."""
    whole = ir.Module("stack")
    multiplies = declared(whole, product, PRODUCT, 2)
    stores, attends = declared(whole, store, STORE, 1), declared(whole, attend, ATTEND, 1)
    entry = function(whole, "stack", VOID, [*[I64] * len(ARGUMENTS), *[I32] * len(THREADS)])
    own = SimpleNamespace(**dict(zip((*ARGUMENTS, *THREADS), entry.args, strict=True)))
    code = Code(entry.append_basic_block())
    queries, joined = shape.queries * shape.width, (shape.queries + 2 * shape.kv) * shape.width
    with code.loop(i64(0), own.count) as (index, _):
        at = code.offset(code.inttoptr(own.blocks, POINTER), code.mul(index, i64(8 * len(LINE))))
        here = {name: code.at(at, i64(8 * place), I64) for place, name in enumerate(LINE)}

        def multiply(
            x: Value,
            name: str,
            out: Value,
            sizes: tuple[int, int],
            threads: Value,
            *,
            norm: Value | None = None,
            add: bool = False,
            gated: bool = False,
        ) -> None:
            places = [x, here[name], out, own.rounded, norm or i64(0), here[f"{name}_bias"]]
            numbers = [own.rows, i64(sizes[0] // GROUP), i64(sizes[1] // LANES)]
            flags = [i64(int(flag)) for flag in (False, add, gated)]  # the first: not in bf16
            code.call(multiplies, [*places, *numbers, *flags, own.rounding, threads])

        multiply(own.states, "joined", own.joined, (shape.hidden, joined), own.joining, norm=here["norm"])
        places = [own.joined, here["head_norm"], own.pairs, here["keys"], here["values"], own.slots]
        sizes = [i64(size) for size in (shape.queries, shape.kv, shape.turned)]
        steps = [own.token_turns, own.head_turns, own.kv_head]
        code.call(stores, [*places, own.rows, *sizes, *steps, own.storing])
        places = [own.joined, here["keys"], here["values"], own.attended, own.runs, own.starts, own.scores]
        steps = [i64(4 * joined), own.kv_head, own.longest]
        scaling = constant(FLOAT, shape.scaling)
        code.call(attends, [*places, own.rows, i64(shape.kv), *steps, scaling, own.attending])
        multiply(own.attended, "out", own.states, (queries, shape.hidden), own.leaving, add=True)
        wide = (shape.hidden, 2 * shape.inner)
        multiply(own.states, "wide", own.wide, wide, own.widening, norm=here["second_norm"])
        multiply(own.wide, "down", own.states, (shape.inner, shape.hidden), own.narrowing, add=True, gated=True)
    code.ret_void()
    return str(whole)
