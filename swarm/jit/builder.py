"""What writing LLVM code takes: its types, and a builder with vectors, loops and intrinsics."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from swarm.jit.compiler import LANES, LINE

__all__ = [
    "BIT",
    "BYTE",
    "BYTES",
    "FLOAT",
    "FLOATS",
    "I16",
    "I32",
    "I64",
    "INTS",
    "POINTER",
    "SHORTS",
    "VOID",
    "WORDS",
    "Carried",
    "Code",
    "Value",
    "all_lanes",
    "constant",
    "elsewhere",
    "function",
    "i64",
]

BIT, BYTE, I16, I32, I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))
FLOAT, VOID, POINTER = ir.FloatType(), ir.VoidType(), ir.PointerType()
INTS, FLOATS, SHORTS = (ir.VectorType(kind, LANES) for kind in (I32, FLOAT, I16))
BYTES, WORDS = ir.VectorType(BYTE, LINE), ir.VectorType(I16, LINE // 2)

Value = Any  # of llvmlite, which has no types


def constant(kind: Value, value: float) -> Value:
    return ir.Constant(kind, value)


def i64(value: int) -> Value:
    return ir.Constant(I64, value)


def all_lanes(kind: Value, value: float) -> Value:
    """A vector with the same value in all lanes."""
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)


def function(whole: Value, name: str, result: Value, kinds: Sequence[Value], *, internal: bool = False) -> Value:
    made = ir.Function(whole, ir.FunctionType(result, kinds), name)
    if internal:
        made.linkage = "internal"
    return made


@dataclass(slots=True)
class Carried:
    """Values that a loop carries: what they are `now`, and what they are `then`, in the next turn."""

    now: list[Value]
    then: list[Value] = field(default_factory=list)


def elsewhere(whole: Value, name: str, result: Value, kinds: Sequence[Value]) -> Value:
    """A function that is not in this module."""
    return whole.globals.get(name) or function(whole, name, result, kinds)


class Code(ir.IRBuilder):  # type: ignore[misc]
    def offset(self, pointer: Value, size: Value) -> Value:
        """So many bytes further."""
        return self.gep(pointer, [size], source_etype=BYTE)

    def each(self, pointer: Value, size: Value, count: int) -> list[Value]:
        return [self.offset(pointer, self.mul(size, i64(index))) for index in range(count)]

    def each_at(self, pointers: Sequence[Value], size: Value) -> list[Value]:
        return [self.offset(pointer, size) for pointer in pointers]

    def at(self, pointer: Value, size: Value, kind: Value) -> Value:
        """What lies so many bytes further, at any address."""
        return self.load(self.offset(pointer, size), typ=kind, align=1)

    def least(self, one: Value, other: Value) -> Value:
        return self.select(self.icmp_signed("<", one, other), one, other)

    def is_null(self, pointer: Value) -> Value:
        return self.icmp_unsigned("==", self.ptrtoint(pointer, I64), i64(0))

    def unless(self, condition: Value, otherwise: Sequence[Value], make: Callable[[], Sequence[Value]]) -> list[Value]:
        """What `make` gives where the condition is not met."""
        before = self.block
        with self.if_then(self.not_(condition)):
            made = make()
            end = self.block
        found = []
        for here, there in zip(made, otherwise, strict=True):
            either = self.phi(here.type)
            either.add_incoming(here, end)
            either.add_incoming(there, before)
            found.append(either)
        return found

    def splat(self, scalar: Value) -> Value:
        nothing = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
        return self.shuffle_vector(
            self.insert_element(nothing, scalar, ir.Constant(I32, 0)), nothing, all_lanes(INTS, 0)
        )

    def halves(self, value: Value) -> Iterator[Value]:
        half = value.type.count // 2
        return (self.shuffle_vector(value, value, _numbers(range(start, start + half))) for start in (0, half))

    def joined(self, low: Value, high: Value) -> Value:
        return self.shuffle_vector(low, high, _numbers(range(2 * low.type.count)))

    def picked(self, value: Value, places: Sequence[int]) -> Value:
        """The values that are at these places."""
        return self.shuffle_vector(value, value, _numbers(places))

    def alternating(self, one: Value, other: Value) -> Value:
        """Every other value of the one, from the first on, and of the other, from the second on."""
        count = one.type.count
        return self.shuffle_vector(one, other, _numbers([lane + lane % 2 * count for lane in range(count)]))

    def prefetch(self, pointer: Value) -> None:
        """Has the line there brought to the second cache; there need not be anything."""
        read, second, data = (constant(I32, value) for value in (0, 2, 1))
        self.intrinsic("llvm.prefetch.p0", VOID, pointer, read, second, data)

    def multiply_add(self, one: Value, other: Value, addend: Value) -> Value:
        return self.intrinsic("llvm.fma.v16f32", FLOATS, one, other, addend)

    def total(self, values: Value) -> Value:
        """The sum of all lanes, added in pairs."""
        add = elsewhere(self.module, "llvm.vector.reduce.fadd.v16f32", FLOAT, [FLOAT, FLOATS])
        return self.call(add, [constant(FLOAT, -0.0), values], fastmath=("reassoc",))

    def intrinsic(self, name: str, result: Value, *operands: Value) -> Value:
        return self.call(elsewhere(self.module, name, result, [operand.type for operand in operands]), operands)

    @contextmanager
    def loop(
        self, start: Value, stop: Value, step: int = 1, carried: Collection[Value] = ()
    ) -> Iterator[tuple[Value, Carried]]:
        """Yields the index, and what is carried; behind the loop, `now` is what was carried last."""
        before = self.block
        head, body, after = (self.append_basic_block(name) for name in ("loop", "body", "after"))
        self.branch(head)
        self.position_at_end(head)
        index = self.phi(I64)
        phis = [self.phi(value.type) for value in carried]
        for phi, value in zip([index, *phis], [start, *carried], strict=True):
            phi.add_incoming(value, before)
        self.cbranch(self.icmp_signed("<", index, stop), body, after)
        self.position_at_end(body)
        values = Carried(phis, list(phis))
        yield index, values
        index.add_incoming(self.add(index, i64(step)), self.block)
        for phi, value in zip(phis, values.then, strict=True):
            phi.add_incoming(value, self.block)
        self.branch(head)
        self.position_at_end(after)


def _numbers(values: Sequence[int]) -> Value:
    return ir.Constant(ir.VectorType(I32, len(values)), [ir.Constant(I32, value) for value in values])
