"""Functions of vectors of 16 fp32 values, which processors have no instruction for."""

from math import factorial, log

from swarm.jit.builder import FLOAT, FLOATS, INTS, Code, Value, all_lanes, constant

__all__ = ["exp", "inverse_root", "silu"]

LOG2_E = 1.4426950408889634
LEAST_POWER = -126.0  # of two: less counts as this
# 2^x around 0, to x^6: for |x| <= 1/2 wrong by 1e-7 at most
SERIES = tuple(log(2) ** power / factorial(power) for power in range(7))


def exp(code: Code, x: Value) -> Value:
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


def inverse_root(code: Code, squares: Value, count: Value, least: Value) -> Value:
    """In all lanes, one over the root of the mean of `count` values plus `least`, given the sums of their squares."""
    mean = code.fadd(code.fdiv(code.total(squares), count), least)
    return code.splat(code.fdiv(constant(FLOAT, 1.0), code.intrinsic("llvm.sqrt.f32", FLOAT, mean)))


def silu(code: Code, x: Value) -> Value:
    """x / (1 + e^-x)."""
    one, zero = all_lanes(FLOATS, 1.0), all_lanes(FLOATS, 0.0)
    small = exp(code, code.fsub(zero, code.intrinsic("llvm.fabs.v16f32", FLOATS, x)))
    above = code.select(code.fcmp_ordered("<", x, zero), small, one)
    return code.fmul(x, code.fdiv(above, code.fadd(one, small)))
