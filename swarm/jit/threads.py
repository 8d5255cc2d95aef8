"""Functions whose work the threads of OpenMP share, as GCC has them."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from swarm.jit.builder import BIT, FLOAT, I32, I64, POINTER, VOID, Code, Value, constant, elsewhere, function, i64
from swarm.jit.compiler import PARALLEL, THREAD, THREADS

__all__ = ["Part", "arguments", "begin_and_end", "declared", "shared"]

Part = Callable[[Code, SimpleNamespace, Value, Value], None]


def shared(whole: Value, name: str, kinds: Mapping[str, Value], parts: Sequence[Part]) -> None:
    """Adds a function to a module: of values of these `kinds`, numbers of 64 bits where they are no FLOAT, and then for
    each of `parts`, which are done one after another, how many threads shall do it.

    A part writes code: `part(code, values, which, of)`, with `values` by their names, and `which` of so many threads it
    is for."""
    parallel = elsewhere(whole, PARALLEL, VOID, [POINTER, POINTER, I32, I32])
    asked = [elsewhere(whole, question, I32, []) for question in (THREAD, THREADS)]
    entry = declared(whole, name, kinds, len(parts))
    code = Code(entry.append_basic_block())
    task = code.alloca(I64, len(kinds))
    for index, value in enumerate(entry.args[: len(kinds)]):
        bits = code.zext(code.bitcast(value, I32), I64) if value.type is FLOAT else value
        code.store(bits, code.offset(task, i64(8 * index)), align=8)
    for index, (part, threads) in enumerate(zip(parts, entry.args[len(kinds) :], strict=True)):
        one = _one_thread(whole, f"{name}_{index}", kinds, part)
        worker = function(whole, f"{name}_{index}_thread", VOID, [POINTER], internal=True)
        inner = Code(worker.append_basic_block())
        inner.call(one, [worker.args[0], *(inner.zext(inner.call(question, []), I64) for question in asked)])
        inner.ret_void()
        with code.if_else(code.icmp_signed(">", threads, constant(I32, 1))) as (several, alone):
            with several:
                code.call(parallel, [worker, task, threads, constant(I32, 0)])
            with alone:
                code.call(one, [task, i64(0), i64(1)])
    code.ret_void()


def declared(whole: Value, name: str, kinds: Mapping[str, Value], parts: int) -> Value:
    """Such a function as `shared` adds, which is somewhere else."""
    numbers = [FLOAT if kind is FLOAT else I64 for kind in kinds.values()]
    return function(whole, name, VOID, [*numbers, *[I32] * parts])


def arguments(kinds: Mapping[str, Value], parts: int) -> list[Any]:
    """What such a function is called with from Python."""
    return [
        *(ctypes.c_float if kind is FLOAT else ctypes.c_int64 for kind in kinds.values()),
        *[ctypes.c_int32] * parts,
    ]


def begin_and_end(code: Code, count: Value, which: Value, of: Value) -> list[Value]:
    """One thread's share of so many."""
    return [code.sdiv(code.mul(count, edge), of) for edge in (which, code.add(which, i64(1)))]


def _one_thread(whole: Value, name: str, kinds: Mapping[str, Value], part: Part) -> Value:
    """`(task, which, of)`"""
    made = function(whole, name, VOID, [POINTER, I64, I64], internal=True)
    code = Code(made.append_basic_block())
    task, which, of = made.args
    raw = {given: code.at(task, i64(8 * index), I64) for index, given in enumerate(kinds)}
    part(code, SimpleNamespace(**{given: _value(code, raw[given], kinds[given]) for given in kinds}), which, of)
    code.ret_void()
    return made


def _value(code: Code, bits: Value, kind: Value) -> Value:
    if kind is POINTER:
        return code.inttoptr(bits, POINTER)
    if kind is FLOAT:
        return code.bitcast(code.trunc(bits, I32), FLOAT)
    return code.trunc(bits, BIT) if kind is BIT else bits
