"""LLVM code of attention for rows that decode: one new token each, in fp32, over keys and values where they lie.

For each row and each head of keys, its queries are multiplied with the keys of all tokens, piece by piece; from these
scores come weights, and from these a sum of values. What a row gives depends on nothing but the row.

    attend(query, keys, values, out, runs, starts, scratch, rows, kv heads, query row, kv head, longest, scaling,
           threads)

with addresses and numbers of 64 bits; scaling is fp32, threads of 32 bits. `query row` and `kv head` are the bytes from
one to the next. Row `r` lies in runs `[starts[r], starts[r + 1])`, each a first slot and a number of tokens.
"""

from collections.abc import Sequence
from math import factorial, log

from llvmlite import ir

from swarm.jit.builder import (
    FLOAT,
    FLOATS,
    I32,
    I64,
    INTS,
    LANES,
    POINTER,
    VOID,
    Code,
    Value,
    all_lanes,
    constant,
    function,
    i64,
)
from swarm.jit.compiler import PARALLEL, THREAD, THREADS

__all__ = ["PAD", "at_once", "module"]

SUMS = 16  # vectors of sums that are kept at once, so that they stay in registers
PAD = LANES  # scores of one query are followed by room for a vector
POINTERS = ("query", "keys", "values", "out", "runs", "starts", "scratch")
NUMBERS = ("rows", "kv", "query_row", "kv_head", "longest")
FIELDS = (*POINTERS, *NUMBERS, "scaling")
LOG2_E = 1.4426950408889634
LEAST_POWER = -126.0  # of two: less counts as this
# 2^x around 0, to x^6: for |x| <= 1/2 wrong by 1e-7 at most
SERIES = tuple(log(2) ** power / factorial(power) for power in range(7))


def at_once(width: int, group: int) -> int:
    """Query heads that pass over their keys together."""
    return max(1, min(group, SUMS * LANES // width))


def module(width: int, group: int) -> str:
    """For heads of this width, a multiple of 16, and so many query heads to each head of keys."""
    whole = ir.Module("decode")
    most = at_once(width, group)
    blocks = {n: _some_heads(whole, width, n) for n in {most, group % most} - {0}}
    parallel = function(whole, PARALLEL, VOID, [POINTER, POINTER, I32, I32])
    asked = [function(whole, name, I32, []) for name in (THREAD, THREADS)]
    share = _share(whole, width, group, blocks)

    worker = function(whole, "parallel_rows", VOID, [POINTER], internal=True)
    code = Code(worker.append_basic_block())
    code.call(share, [worker.args[0], *(code.zext(code.call(ask, []), I64) for ask in asked)])
    code.ret_void()

    attend = function(whole, "attend", VOID, [I64] * (len(FIELDS) - 1) + [FLOAT, I32])
    code = Code(attend.append_basic_block())
    task = code.alloca(I64, len(FIELDS))
    *given, scaling, threads = attend.args
    given.append(code.zext(code.bitcast(scaling, I32), I64))
    for index, value in enumerate(given):
        code.store(value, code.offset(task, i64(8 * index)), align=8)
    with code.if_else(code.icmp_signed(">", threads, constant(I32, 1))) as (several, alone):
        with several:
            code.call(parallel, [worker, task, threads, constant(I32, 0)])
        with alone:
            code.call(share, [task, i64(0), i64(1)])
    code.ret_void()
    return str(whole)


def _share(whole: Value, width: int, group: int, blocks: dict[int, Value]) -> Value:
    """`(task, which, of)`: one thread's rows and heads of keys."""
    made = function(whole, "share", VOID, [POINTER, I64, I64], internal=True)
    code = Code(made.append_basic_block())
    task, which, of = made.args
    own = {name: code.at(task, i64(8 * index), I64) for index, name in enumerate(FIELDS[:-1])}
    own |= {name: code.inttoptr(own[name], POINTER) for name in POINTERS}
    scaling = code.at(task, i64(8 * (len(FIELDS) - 1)), FLOAT)
    head_bytes, most = 4 * width, max(blocks)
    row_scores = code.add(own["longest"], i64(PAD))
    scratch = code.offset(own["scratch"], code.mul(which, code.mul(row_scores, i64(4 * most))))
    items = code.mul(own["rows"], own["kv"])
    begin, end = (code.sdiv(code.mul(items, part), of) for part in (which, code.add(which, i64(1))))
    with code.loop(begin, end) as (item, _):
        row, head = code.sdiv(item, own["kv"]), code.srem(item, own["kv"])
        first = code.at(own["starts"], code.mul(row, i64(8)), I64)
        last = code.at(own["starts"], code.add(code.mul(row, i64(8)), i64(8)), I64)
        query = code.offset(own["query"], code.mul(row, own["query_row"]))
        query = code.offset(query, code.mul(head, i64(group * head_bytes)))
        out = code.offset(own["out"], code.mul(item, i64(group * head_bytes)))
        sources = [code.offset(own[name], code.mul(head, own["kv_head"])) for name in ("keys", "values")]
        for start in range(0, group, most):
            places = [code.offset(pointer, i64(start * head_bytes)) for pointer in (query, out)]
            given = [places[0], *sources, places[1], own["runs"], first, last, scratch, row_scores, scaling]
            code.call(blocks[min(most, group - start)], given)
    code.ret_void()
    return made


def _some_heads(whole: Value, width: int, heads: int) -> Value:
    """`(query, keys, values, out, runs, first run, last run, scratch, scores of a head, scaling)`: so many query heads,
    which share their keys."""
    kinds = [POINTER] * 5 + [I64, I64, POINTER, I64, FLOAT]
    made = function(whole, f"heads_{heads}", VOID, kinds, internal=True)
    query, keys, values, out, runs, first, last, scratch, row_scores, scaling = made.args
    code = Code(made.append_basic_block())
    parts = range(width // LANES)
    scores = code.each(scratch, code.mul(row_scores, i64(4)), heads)
    queries = [
        [code.at(query, i64(4 * (head * width + LANES * part)), FLOATS) for part in parts] for head in range(heads)
    ]
    least = constant(FLOAT, float("-inf"))

    with code.loop(first, last, carried=[i64(0), *[least] * heads]) as (run, carried):
        slot, n = (code.at(runs, code.add(code.mul(run, i64(16)), i64(8 * which)), I64) for which in (0, 1))
        with code.loop(i64(0), n, carried=carried.now) as (token, within):
            at = code.offset(keys, code.mul(code.add(slot, token), i64(4 * width)))
            key = [code.at(at, i64(4 * LANES * part), FLOATS) for part in parts]
            place = within.now[0]
            within.then[0] = code.add(place, i64(1))
            for head in range(heads):
                score = code.fmul(_dot(code, queries[head], key), scaling)
                code.store(score, code.offset(scores[head], code.mul(place, i64(4))), align=4)
                within.then[1 + head] = code.intrinsic("llvm.maxnum.f32", FLOAT, within.now[1 + head], score)
        carried.then[:] = within.now
    tokens, *greatest = carried.now

    inverse = []
    for head in range(heads):
        code.store(all_lanes(FLOATS, float("-inf")), code.offset(scores[head], code.mul(tokens, i64(4))), align=4)
        most = code.splat(greatest[head])
        with code.loop(i64(0), tokens, LANES, carried=[all_lanes(FLOATS, 0.0)]) as (place, total):
            at = code.offset(scores[head], code.mul(place, i64(4)))
            weight = _exp(code, code.fsub(code.at(at, i64(0), FLOATS), most))
            code.store(weight, at, align=4)
            total.then[0] = code.fadd(total.now[0], weight)
        inverse.append(code.splat(code.fdiv(constant(FLOAT, 1.0), code.total(total.now[0]))))

    zeros = [all_lanes(FLOATS, 0.0)] * (heads * len(parts))
    with code.loop(first, last, carried=[i64(0), *zeros]) as (run, carried):
        slot, n = (code.at(runs, code.add(code.mul(run, i64(16)), i64(8 * which)), I64) for which in (0, 1))
        with code.loop(i64(0), n, carried=carried.now) as (token, within):
            at = code.offset(values, code.mul(code.add(slot, token), i64(4 * width)))
            value = [code.at(at, i64(4 * LANES * part), FLOATS) for part in parts]
            place, sums = within.now[0], within.now[1:]
            within.then[0] = code.add(place, i64(1))
            for head in range(heads):
                weight = code.splat(code.at(scores[head], code.mul(place, i64(4)), FLOAT))
                for part in parts:
                    index = head * len(parts) + part
                    within.then[1 + index] = code.multiply_add(weight, value[part], sums[index])
        carried.then[:] = within.now
    for index, total in enumerate(carried.now[1:]):
        mean = code.fmul(total, inverse[index // len(parts)])
        code.store(mean, code.offset(out, i64(4 * LANES * index)), align=4)
    code.ret_void()
    return made


def _dot(code: Code, one: Sequence[Value], other: Sequence[Value]) -> Value:
    total = code.fmul(one[0], other[0])
    for left, right in zip(one[1:], other[1:], strict=True):
        total = code.multiply_add(left, right, total)
    return code.total(total)


def _exp(code: Code, x: Value) -> Value:
    """e^x for x <= 0."""
    power = code.fmul(x, all_lanes(FLOATS, LOG2_E))
    few = code.fcmp_ordered("<", power, all_lanes(FLOATS, LEAST_POWER))
    power = code.select(few, all_lanes(FLOATS, LEAST_POWER), power)
    whole = code.intrinsic("llvm.rint.v16f32", FLOATS, power)
    rest = code.fsub(power, whole)
    value = all_lanes(FLOATS, SERIES[-1])
    for factor in reversed(SERIES[:-1]):
        value = code.multiply_add(value, rest, all_lanes(FLOATS, factor))
    exponent = code.intrinsic("llvm.fptosi.sat.v16i32.v16f32", INTS, whole)
    scale = code.shl(code.add(exponent, all_lanes(INTS, 127)), all_lanes(INTS, 23))
    return code.fmul(value, code.bitcast(scale, FLOATS))
