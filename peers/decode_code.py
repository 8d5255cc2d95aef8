"""LLVM code of attention for rows that decode: one new token each, in fp32, over keys and values where they lie.

For each row and each head of keys, its queries are multiplied with the keys of all tokens, piece by piece; from these
scores come weights, and from these a sum of values. What a row gives depends on nothing but the row.

    attend(query, keys, values, out, runs, starts, scratch, rows, kv heads, query row, kv head, longest, scaling,
           threads)

as `swarm.jit.threads` has them. `query row` and `kv head` are the bytes from
one to the next. Row `r` lies in runs `[starts[r], starts[r + 1])`, each a first slot and a number of tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import factorial, log
from types import SimpleNamespace

from llvmlite import ir

from swarm.jit.builder import (
    FLOAT,
    FLOATS,
    I64,
    INTS,
    POINTER,
    VOID,
    Carried,
    Code,
    Value,
    all_lanes,
    constant,
    function,
    i64,
)
from swarm.jit.compiler import LANES
from swarm.jit.threads import begin_and_end, shared

__all__ = ["PAD", "at_once", "module"]

SUMS = 16  # vectors of sums that are kept at once, so that they stay in registers
PAD = LANES  # scores of one query are followed by room for a vector
KINDS = dict.fromkeys(("query", "keys", "values", "out", "runs", "starts", "scratch"), POINTER)
KINDS |= dict.fromkeys(("rows", "kv", "query_row", "kv_head", "longest"), I64) | {"scaling": FLOAT}
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

    def rows(code: Code, own: SimpleNamespace, which: Value, of: Value) -> None:
        _attend(code, own, which, of, width, group, blocks)

    shared(whole, "attend", KINDS, (rows,))
    return str(whole)


def _attend(
    code: Code, own: SimpleNamespace, which: Value, of: Value, width: int, group: int, blocks: dict[int, Value]
) -> None:
    """One thread's rows and heads of keys."""
    head_bytes, most = 4 * width, max(blocks)
    row_scores = code.add(own.longest, i64(PAD))
    scratch = code.offset(own.scratch, code.mul(which, code.mul(row_scores, i64(4 * most))))
    begin, end = begin_and_end(code, code.mul(own.rows, own.kv), which, of)
    with code.loop(begin, end) as (item, _):
        row, head = code.sdiv(item, own.kv), code.srem(item, own.kv)
        first = code.at(own.starts, code.mul(row, i64(8)), I64)
        last = code.at(own.starts, code.add(code.mul(row, i64(8)), i64(8)), I64)
        query = code.offset(own.query, code.mul(row, own.query_row))
        query = code.offset(query, code.mul(head, i64(group * head_bytes)))
        out = code.offset(own.out, code.mul(item, i64(group * head_bytes)))
        sources = code.each_at((own.keys, own.values), code.mul(head, own.kv_head))
        for start in range(0, group, most):
            asked, answer = code.each_at((query, out), i64(start * head_bytes))
            given = [asked, *sources, answer, own.runs, first, last, scratch, row_scores, own.scaling]
            code.call(blocks[min(most, group - start)], given)


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

    with _each_token(code, keys, width, (runs, first, last), [least] * heads) as (key, turn):
        for head in range(heads):
            score = code.fmul(_dot(code, queries[head], key), scaling)
            code.store(score, code.offset(scores[head], code.mul(turn.now[0], i64(4))), align=4)
            turn.then[1 + head] = code.intrinsic("llvm.maxnum.f32", FLOAT, turn.now[1 + head], score)
    tokens, *greatest = turn.now

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
    with _each_token(code, values, width, (runs, first, last), zeros) as (value, turn):
        for head in range(heads):
            weight = code.splat(code.at(scores[head], code.mul(turn.now[0], i64(4)), FLOAT))
            for part in parts:
                index = 1 + head * len(parts) + part
                turn.then[index] = code.multiply_add(weight, value[part], turn.now[index])
    for index, total in enumerate(turn.now[1:]):
        mean = code.fmul(total, inverse[index // len(parts)])
        code.store(mean, code.offset(out, i64(4 * LANES * index)), align=4)
    code.ret_void()
    return made


@contextmanager
def _each_token(
    code: Code, source: Value, width: int, where: tuple[Value, Value, Value], carried: Sequence[Value]
) -> Iterator[tuple[list[Value], Carried]]:
    """Of each token of a row, what it has in `source`, and what is carried, behind the number of tokens before it.
    `where`: runs, the row's first, and the one behind its last."""
    runs, first, last = where
    with code.loop(first, last, carried=[i64(0), *carried]) as (run, outer):
        slot, n = (code.at(runs, code.add(code.mul(run, i64(16)), i64(8 * which)), I64) for which in (0, 1))
        with code.loop(i64(0), n, carried=outer.now) as (token, turn):
            at = code.offset(source, code.mul(code.add(slot, token), i64(4 * width)))
            turn.then[0] = code.add(turn.now[0], i64(1))
            yield [code.at(at, i64(4 * start), FLOATS) for start in range(0, width, LANES)], turn
        outer.then[:] = turn.now
    turn.now[:] = outer.now


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
