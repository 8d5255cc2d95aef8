"""LLVM code of attention for rows that decode: one new token each, in fp32, over keys and values where they lie.

    store(joined, norm, turns, keys, values, slots, tokens, queries, kv, turned, token turns, head turns, kv head,
          threads)

takes in new tokens, of any rows: their queries and keys are normed and turned, queries in place, and keys and values
are put into their slots. `joined` `[tokens, queries + 2 kv, width]`. `norm` is 0, or fp32 `[queries + kv, width]` and
one value more: heads are divided by the root of their mean square plus the last value, and multiplied with the others.
Pairs of neighbours of the first `turned` values of a head turn by complex numbers, of which `token turns` and
`head turns` are the bytes from one token and head to the next.

    attend(query, keys, values, out, runs, starts, scratch, rows, kv, query row, kv head, longest, scaling, threads)

For each row and each head of keys, its queries are multiplied with the keys of all tokens, piece by piece; from these
scores come weights, and from these a sum of values. What a row gives depends on nothing but the row. `query row` and
`kv head` are the bytes from one to the next. Row `r` lies in runs `[starts[r], starts[r + 1])`, each a first slot and a
number of tokens.

Both are as `swarm.jit.threads` has them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

from llvmlite import ir

from swarm.jit.builder import (
    FLOAT,
    FLOATS,
    I64,
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
from swarm.jit.maths import exp, inverse_root
from swarm.jit.threads import begin_and_end, shared

__all__ = ["ATTEND", "PAD", "STORE", "at_once", "module"]

SUMS = 16  # vectors of sums that are kept at once, so that they stay in registers
PAD = LANES  # scores of one query are followed by room for a vector
STORE = dict.fromkeys(("joined", "norm", "turns", "keys", "values", "slots"), POINTER)
STORE |= dict.fromkeys(("tokens", "queries", "kv", "turned", "token_turns", "head_turns", "kv_head"), I64)
ATTEND = dict.fromkeys(("query", "keys", "values", "out", "runs", "starts", "scratch"), POINTER)
ATTEND |= dict.fromkeys(("rows", "kv", "query_row", "kv_head", "longest"), I64) | {"scaling": FLOAT}
FIRSTS, SECONDS = [lane & ~1 for lane in range(LANES)], [lane | 1 for lane in range(LANES)]  # of pairs of lanes
SWAPPED = [lane ^ 1 for lane in range(LANES)]


def at_once(width: int, group: int) -> int:
    """Query heads that pass over their keys together."""
    return max(1, min(group, SUMS * LANES // width))


def module(width: int, group: int) -> str:
    """For heads of this width, a multiple of 16, and so many query heads to each head of keys."""
    whole = ir.Module("decode")
    most = at_once(width, group)
    blocks = {n: _some_heads(whole, width, n) for n in {most, group % most} - {0}}

    def tokens(code: Code, own: SimpleNamespace, which: Value, of: Value) -> None:
        _store(code, own, which, of, width)

    def rows(code: Code, own: SimpleNamespace, which: Value, of: Value) -> None:
        _attend(code, own, which, of, width, group, blocks)

    shared(whole, "store", STORE, (tokens,))
    shared(whole, "attend", ATTEND, (rows,))
    return str(whole)


def _store(code: Code, own: SimpleNamespace, which: Value, of: Value, width: int) -> None:
    """One thread's tokens."""
    head_bytes = i64(4 * width)
    normed = code.add(own.queries, own.kv)
    heads = code.add(normed, own.kv)
    without_norm = code.is_null(own.norm)
    least = code.offset(own.norm, code.mul(normed, head_bytes))
    begin, end = begin_and_end(code, own.tokens, which, of)
    with code.loop(begin, end) as (token, _):
        row = code.offset(own.joined, code.mul(token, code.mul(heads, head_bytes)))
        turns = code.offset(own.turns, code.mul(token, own.token_turns))
        slot = code.mul(code.at(own.slots, code.mul(token, i64(8)), I64), head_bytes)

        def turn(head: Value, into: Value | None) -> None:
            source = code.offset(row, code.mul(head, head_bytes))
            with code.if_then(code.not_(without_norm)):
                _norm(code, source, code.offset(own.norm, code.mul(head, head_bytes)), least, width)
            _turn(code, source, into or source, code.offset(turns, code.mul(head, own.head_turns)), own.turned, width)

        with code.loop(i64(0), own.queries) as (query, _):
            turn(query, None)
        with code.loop(i64(0), own.kv) as (head, _):
            place = code.add(code.mul(head, own.kv_head), slot)
            key = code.add(own.queries, head)
            turn(key, code.offset(own.keys, place))
            value = code.offset(row, code.mul(code.add(key, own.kv), head_bytes))
            _copy(code, value, code.offset(own.values, place), i64(0), width)


def _norm(code: Code, head: Value, factors: Value, least: Value, width: int) -> None:
    """In place."""
    places = [i64(4 * start) for start in range(0, width, LANES)]
    values = [code.at(head, place, FLOATS) for place in places]
    squares = code.fmul(values[0], values[0])
    for value in values[1:]:
        squares = code.multiply_add(value, value, squares)
    scale = inverse_root(code, squares, constant(FLOAT, width), code.at(least, i64(0), FLOAT))
    for place, value in zip(places, values, strict=True):
        factor = code.at(factors, place, FLOATS)
        code.store(code.fmul(code.fmul(value, scale), factor), code.offset(head, place), align=4)


def _turn(code: Code, source: Value, into: Value, turns: Value, turned: Value, width: int) -> None:
    """A head. Each product is rounded before the sum, as torch does it."""
    with code.loop(i64(0), turned, LANES) as (start, _):
        size = code.mul(start, i64(4))
        values, by = code.at(source, size, FLOATS), code.at(turns, size, FLOATS)
        straight = code.fmul(values, code.picked(by, FIRSTS))
        crossed = code.fmul(code.picked(values, SWAPPED), code.picked(by, SECONDS))
        sums = code.fsub(straight, crossed), code.fadd(straight, crossed)
        code.store(code.alternating(*sums), code.offset(into, size), align=4)
    _copy(code, source, into, turned, width)


def _copy(code: Code, source: Value, into: Value, begin: Value, width: int) -> None:
    """Values of a head from `begin` on."""
    with code.loop(begin, i64(width), LANES) as (start, _):
        size = code.mul(start, i64(4))
        code.store(code.at(source, size, FLOATS), code.offset(into, size), align=4)


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
            weight = exp(code, code.fsub(code.at(at, i64(0), FLOATS), most))
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
