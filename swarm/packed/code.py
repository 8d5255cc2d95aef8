"""LLVM code that multiplies activations with 4-bit weights, for x86 with AVX-512 VNNI, AVX-VNNI or AVX2.

Activations are rounded to 8 bits, a scale for each group of 32 of a row. Weights lie in tiles, 16 outputs each, one in
each lane of a vector; `swarm.packed.layout` says how. Within a group all sums are whole numbers and so exact; the sums
of groups are added in fp32 in the order of the groups, whatever is computed beside them: a row's outputs do not depend,
to the last bit, on the rows and the number of threads that it is computed with.

What comes out is the text of a module with one public function,

    product(x, tiles, out, scratch, norm, bias, rows, groups, tiles in all, whether bf16, whether to add to out,
            whether gated, threads for rows, threads for tiles)

as `swarm.jit.threads` has them. `norm` is 0, or fp32 `[in + 1]`: rows are divided by the root of their mean square plus
the last value, and multiplied with the others. `bias` is 0, or fp32 `[out]`. Gated rows are twice as long: the silu of
their first half times the second is what is multiplied.
"""

from collections.abc import Sequence
from types import SimpleNamespace

from llvmlite import ir

from swarm.jit.builder import (
    BIT,
    BYTE,
    BYTES,
    FLOAT,
    FLOATS,
    I16,
    I32,
    I64,
    INTS,
    POINTER,
    SHORTS,
    VOID,
    WORDS,
    Code,
    Value,
    all_lanes,
    constant,
    function,
    i64,
)
from swarm.jit.compiler import LANES, LINE
from swarm.jit.maths import inverse_root, silu
from swarm.jit.threads import begin_and_end, shared
from swarm.packed.layout import FACTORS_BYTES, GROUP_BYTES, LEVELS_BYTES
from swarm.packed.levels import GROUP, MIDDLE

__all__ = ["INSTRUCTIONS", "module"]

LEAST = 1e-30  # a group of activations whose greatest is less counts as zeros
MOST = 127.0

INSTRUCTIONS = ("avx512vnni", "avxvnni", "avx2")  # the best first
BLOCKS = {1: 4, 2: 2, 3: 2, 4: 2}  # tiles that so many rows take at once, so that all sums stay in 32 registers
NARROW_BLOCKS = {1: 2, 2: 1}  # in 16 registers of half the width
UNIT = 4  # tiles that one thread takes at least

FACTORS = (FLOAT, FLOAT, I32)  # scale, sum, and that of the levels alone times -MIDDLE
KINDS = dict.fromkeys(("x", "tiles", "out", "scratch", "norm", "bias"), POINTER)
KINDS |= dict.fromkeys(("rows", "groups", "count"), I64)  # count: of tiles
KINDS |= dict.fromkeys(("bf16", "add", "gated"), BIT)
PLAIN, NORMED, GATED = WAYS = ("quantize", "quantize_normed", "quantize_gated")


def module(instructions: str) -> str:
    """The code for one of `INSTRUCTIONS`."""
    whole = ir.Module("int4")
    plain, normed, gated = (_quantize(whole, way) for way in WAYS)
    blocks = BLOCKS if instructions == "avx512vnni" else NARROW_BLOCKS
    kernels = {(rows, n): _kernel(whole, instructions, rows, n) for rows, most in blocks.items() for n in {most, 1}}

    def rows(code: Code, own: SimpleNamespace, which: Value, of: Value) -> None:
        first, last = begin_and_end(code, own.rows, which, of)
        given = [own.x, own.scratch, _factors(code, own), own.norm, first, last, own.groups, own.bf16]
        with code.if_else(own.gated) as (within_gates, otherwise):
            with within_gates:
                code.call(gated, given)
            with otherwise, code.if_else(code.is_null(own.norm)) as ways:
                for way, quantize in zip(ways, (plain, normed), strict=True):
                    with way:
                        code.call(quantize, given)

    def tiles(code: Code, own: SimpleNamespace, which: Value, of: Value) -> None:
        _multiply(code, own, which, of, blocks, kernels)

    shared(whole, "product", KINDS, (rows, tiles))
    return str(whole)


def _factors(code: Code, own: SimpleNamespace) -> Value:
    """Where in the scratch they are: behind the activations in 8 bits."""
    return code.offset(own.scratch, code.mul(own.rows, code.mul(own.groups, i64(GROUP))))


# --- activations -----------------------------------------------------------------------------------------------------


def _quantize(whole: Value, way: str) -> Value:
    """`(x, levels, factors, norm, first row, last row, groups, whether bf16)`: rounds these rows to 8 bits, in one of
    WAYS."""
    kinds = [POINTER] * 4 + [I64, I64, I64, BIT]
    made = function(whole, way, VOID, kinds, internal=True)
    x, levels, factors, norm, first, last, groups, bf16 = made.args
    code = Code(made.append_basic_block())
    with code.loop(first, last) as (row, _):
        begin = code.mul(row, groups)
        source = code.mul(begin, i64(2)) if way == GATED else begin
        scale = _norming(code, x, begin, groups, norm, bf16) if way == NORMED else None
        with code.loop(i64(0), groups) as (group, _):
            at = code.add(source, group)
            halves = _load_group(code, x, at, bf16)
            if scale is not None:
                weights = [code.at(norm, _place(code, group, 4, half), FLOATS) for half in range(2)]
                pairs = zip(halves, weights, strict=True)
                halves = [code.fmul(code.fmul(half, scale), weight) for half, weight in pairs]
            if way == GATED:
                both = zip(halves, _load_group(code, x, code.add(at, groups), bf16), strict=True)
                halves = [code.fmul(silu(code, gate), up) for gate, up in both]
            _round_group(code, halves, levels, factors, code.add(begin, group))
    code.ret_void()
    return made


def _norming(code: Code, x: Value, begin: Value, groups: Value, norm: Value, bf16: Value) -> Value:
    """In all lanes, what normalises a row."""
    with code.loop(i64(0), groups, carried=[all_lanes(FLOATS, 0.0)] * 2) as (group, sums):
        halves = _load_group(code, x, code.add(begin, group), bf16)
        sums.then[:] = [code.multiply_add(v, v, own) for v, own in zip(halves, sums.now, strict=True)]
    inputs = code.mul(groups, i64(GROUP))
    least = code.at(norm, code.mul(inputs, i64(4)), FLOAT)
    return inverse_root(code, code.fadd(*sums.now), code.sitofp(inputs, FLOAT), least)


def _load_group(code: Code, x: Value, group: Value, bf16: Value) -> list[Value]:
    """32 activations in two vectors."""

    def load(size: int, kind: Value) -> list[Value]:
        return [code.at(x, _place(code, group, size, half), kind) for half in range(2)]

    ways = []
    with code.if_else(bf16) as (short, long):
        with short:
            ways.append(([_wide(code, bits) for bits in load(2, SHORTS)], code.block))
        with long:
            ways.append((load(4, FLOATS), code.block))
    halves = []
    for half in range(2):
        either = code.phi(FLOATS)
        for values, block in ways:
            either.add_incoming(values[half], block)
        halves.append(either)
    return halves


def _place(code: Code, group: Value, size: int, half: int) -> Value:
    """Bytes from the first of the groups to half of one, of values of so many bytes."""
    return code.add(code.mul(group, i64(size * GROUP)), i64(size * LANES * half))


def _round_group(code: Code, halves: Sequence[Value], levels: Value, factors: Value, group: Value) -> None:
    """Of one group, its activations in 8 bits and its factors, to where they belong."""
    bits = [code.bitcast(half, INTS) for half in halves]
    sizes = [code.and_(each, all_lanes(INTS, 0x7FFFFFFF)) for each in bits]  # NaN is the greatest of them
    most = code.select(code.icmp_unsigned(">", *sizes), *sizes)
    greatest = code.bitcast(code.intrinsic("llvm.vector.reduce.umax.v16i32", I32, most), FLOAT)
    none, nothing = code.fcmp_ordered("<", greatest, constant(FLOAT, LEAST)), constant(FLOAT, 0.0)
    scale = code.select(none, nothing, code.fmul(greatest, constant(FLOAT, 1 / MOST)))
    inverse = code.splat(code.select(none, nothing, code.fdiv(constant(FLOAT, MOST), greatest)))
    rounded = []
    for index, half in enumerate(halves):
        near = code.intrinsic("llvm.rint.v16f32", FLOATS, code.fmul(half, inverse))
        rounded.append(code.intrinsic("llvm.fptosi.sat.v16i32.v16f32", INTS, near))
        place = code.offset(levels, _place(code, group, 1, index))
        code.store(code.trunc(rounded[index], ir.VectorType(BYTE, LANES)), place, align=1)
    total = code.intrinsic("llvm.vector.reduce.add.v16i32", I32, code.add(*rounded))
    middled = code.mul(total, constant(I32, -MIDDLE))  # since levels count from their middle
    place = code.mul(group, i64(FACTORS_BYTES))
    for index, value in enumerate((scale, code.fmul(scale, code.sitofp(total, FLOAT)), middled)):
        code.store(value, code.offset(factors, code.add(place, i64(4 * index))), align=4)


# --- products --------------------------------------------------------------------------------------------------------


def _multiply(
    code: Code,
    own: SimpleNamespace,
    which: Value,
    of: Value,
    blocks: dict[int, int],
    kernels: dict[tuple[int, int], Value],
) -> None:
    """All rows of one thread's share of the tiles. Few tiles at a time, which stay in the cache while the rows pass."""
    units = code.sdiv(code.add(own.count, i64(UNIT - 1)), i64(UNIT))
    begin, end = (code.mul(edge, i64(UNIT)) for edge in begin_and_end(code, units, which, of))
    factors = _factors(code, own)
    outputs, inputs = code.mul(own.count, i64(LANES)), code.mul(own.groups, i64(GROUP))
    size = code.select(own.bf16, i64(2), i64(4))
    without_bias = code.is_null(own.bias)

    def call(row: Value, rows: int, tile: Value, tiles: int) -> None:
        here = code.add(code.mul(row, outputs), code.mul(tile, i64(LANES)))
        places = (
            code.offset(own.tiles, code.mul(tile, code.mul(own.groups, i64(GROUP_BYTES)))),
            code.offset(own.scratch, code.mul(row, inputs)),
            code.offset(factors, code.mul(row, code.mul(own.groups, i64(FACTORS_BYTES)))),
            code.offset(own.out, code.mul(here, size)),
            code.select(without_bias, own.bias, code.offset(own.bias, code.mul(tile, i64(4 * LANES)))),
        )
        code.call(kernels[rows, tiles], [*places, own.groups, outputs, own.bf16, own.add])

    most_rows = max(blocks)
    with code.loop(begin, end, UNIT) as (unit, _):
        stop = code.least(code.add(unit, i64(UNIT)), own.count)

        def pass_rows(row: Value, rows: int) -> None:
            tiles = blocks[rows]
            whole_blocks = code.sub(stop, code.srem(code.sub(stop, unit), i64(tiles)))
            with code.loop(unit, whole_blocks, tiles) as (tile, _):
                call(row, rows, tile, tiles)
            with code.loop(whole_blocks, stop) as (tile, _):
                call(row, rows, tile, 1)

        left = code.srem(own.rows, i64(most_rows))
        even = code.sub(own.rows, left)
        with code.loop(i64(0), even, most_rows) as (row, _):
            pass_rows(row, most_rows)
        for rows in range(1, most_rows):
            with code.if_then(code.icmp_signed("==", left, i64(rows))):
                pass_rows(even, rows)


def _kernel(whole: Value, instructions: str, rows: int, tiles: int) -> Value:
    """`(tiles, levels of activations, their factors, out, bias, groups, outputs, whether bf16, whether to add)`: for so
    many rows and tiles, from these addresses on."""
    kinds = [POINTER] * 5 + [I64, I64, BIT, BIT]
    made = function(whole, f"rows_{rows}_tiles_{tiles}", VOID, kinds, internal=True)
    weights, levels, factors, out, bias, groups, outputs, bf16, add = made.args
    code = Code(made.append_basic_block())
    cells = [(row, tile) for row in range(rows) for tile in range(tiles)]
    tile_bytes = code.mul(groups, i64(GROUP_BYTES))
    ahead = code.mul(tile_bytes, i64(UNIT))  # processors look ahead within a page; what comes next begins elsewhere
    tile_at = code.each(weights, tile_bytes, tiles)
    levels_at = code.each(levels, code.mul(groups, i64(GROUP)), rows)
    factors_at = code.each(factors, code.mul(groups, i64(FACTORS_BYTES)), rows)
    with code.loop(i64(0), groups, carried=[all_lanes(FLOATS, 0.0)] * len(cells)) as (group, sums):
        start, place = code.mul(group, i64(GROUP_BYTES)), code.mul(group, i64(FACTORS_BYTES))
        own = [
            [code.splat(code.at(at, code.add(place, i64(4 * index)), kind)) for index, kind in enumerate(FACTORS)]
            for at in factors_at
        ]
        for at in code.each_at(tile_at, code.add(start, ahead)):
            for line in range(GROUP_BYTES // LINE):
                code.prefetch(code.offset(at, i64(LINE * line)))
        four_at = code.each_at(levels_at, code.mul(group, i64(GROUP)))
        totals = _whole_sums(code, instructions, code.each_at(tile_at, start), four_at, [each[2] for each in own])
        both = [code.at(at, code.add(start, i64(LEVELS_BYTES)), INTS) for at in tile_at]
        scales = [code.bitcast(code.shl(each, all_lanes(INTS, 16)), FLOATS) for each in both]
        zeros = [code.bitcast(code.and_(each, all_lanes(INTS, 0xFFFF0000)), FLOATS) for each in both]
        for index, (row, tile) in enumerate(cells):
            scale, total, _ = own[row]
            based = code.multiply_add(zeros[tile], total, sums.now[index])
            whole_sum = code.sitofp(totals[row, tile], FLOATS)
            sums.then[index] = code.multiply_add(whole_sum, code.fmul(scales[tile], scale), based)
    zero = all_lanes(FLOATS, 0.0)
    biases = code.unless(
        code.is_null(bias), [zero] * tiles, lambda: [code.at(bias, i64(LINE * tile), FLOATS) for tile in range(tiles)]
    )
    with code.if_else(bf16) as (short, long):
        for way, kind, size in ((short, SHORTS, 2), (long, FLOATS, 4)):
            with way:
                for (row, tile), total in zip(cells, sums.now, strict=True):
                    place = code.offset(
                        out, code.mul(code.add(code.mul(outputs, i64(row)), i64(LANES * tile)), i64(size))
                    )
                    old = code.at(place, i64(0), kind)
                    known = code.select(add, _wide(code, old) if size == 2 else old, zero)
                    value = code.fadd(code.fadd(known, total), biases[tile])
                    code.store(_short(code, value) if size == 2 else value, place, align=size)
    code.ret_void()
    return made


def _whole_sums(
    code: Code, instructions: str, tile_at: Sequence[Value], levels_at: Sequence[Value], begin: Sequence[Value]
) -> dict[tuple[int, int], Value]:
    """Of each row and tile the sum over one group, which lies at these addresses; `begin`: that of each row."""
    chains = 2 if len(tile_at) * len(levels_at) < 8 else 1  # sums that wait for each other leave the processor idle
    rest = [all_lanes(INTS, 0)] * (chains - 1)
    sums = {(row, tile): [start, *rest] for row, start in enumerate(begin) for tile in range(len(tile_at))}
    for line in range(LEVELS_BYTES // LINE):
        pairs = [code.at(at, i64(LINE * line), BYTES) for at in tile_at]
        shifted = [code.bitcast(code.lshr(code.bitcast(pair, WORDS), all_lanes(WORDS, 4)), BYTES) for pair in pairs]
        for half, both in enumerate((pairs, shifted)):
            weights = [code.and_(each, all_lanes(BYTES, 15)) for each in both]
            for row, at in enumerate(levels_at):
                activations = code.bitcast(code.splat(code.at(at, i64(8 * line + 4 * half), I32)), BYTES)
                for tile, weight in enumerate(weights):
                    own, chain = sums[row, tile], half % chains
                    own[chain] = _dot(code, instructions, own[chain], weight, activations)
    return {key: own[0] if chains == 1 else code.add(*own) for key, own in sums.items()}


def _dot(code: Code, instructions: str, total: Value, weights: Value, activations: Value) -> Value:
    """In each lane, `total` and the sum of four products of bytes: of weights from 0 to 15, and of activations."""
    if instructions == "avx512vnni":
        operands = (code.bitcast(weights, INTS), code.bitcast(activations, INTS))
        return code.intrinsic("llvm.x86.avx512.vpdpbusd.512", INTS, total, *operands)
    half, words = ir.VectorType(I32, LANES // 2), ir.VectorType(I16, LANES)
    parts = []
    for own, weight, activation in zip(*(code.halves(each) for each in (total, weights, activations)), strict=True):
        if instructions == "avxvnni":
            operands = (code.bitcast(weight, half), code.bitcast(activation, half))
            parts.append(code.intrinsic("llvm.x86.avx512.vpdpbusd.256", half, own, *operands))
        else:
            twos = code.intrinsic("llvm.x86.avx2.pmadd.ub.sw", words, weight, activation)
            fours = code.intrinsic("llvm.x86.avx2.pmadd.wd", half, twos, all_lanes(words, 1))
            parts.append(code.add(own, fours))
    return code.joined(*parts)


def _wide(code: Code, bits: Value) -> Value:
    """bf16 to fp32."""
    return code.bitcast(code.shl(code.zext(bits, INTS), all_lanes(INTS, 16)), FLOATS)


def _short(code: Code, values: Value) -> Value:
    """fp32 to the bits of the nearest bf16, ties to even."""
    bits = code.bitcast(values, INTS)
    odd = code.and_(code.lshr(bits, all_lanes(INTS, 16)), all_lanes(INTS, 1))
    near = code.add(code.add(bits, all_lanes(INTS, 0x7FFF)), odd)
    nan = code.fcmp_unordered("uno", values, values)
    return code.trunc(code.lshr(code.select(nan, all_lanes(INTS, 0x7FC00000), near), all_lanes(INTS, 16)), SHORTS)
