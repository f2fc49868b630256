"""Programs are compiled as many at a time as there is room for, and again alone if there was too little after all."""

import threading

import jax
import jax.numpy as jnp
import pytest

from jaxdeploy.engine.compile_pool import CompilePool, threads_that_fit

GIB = 2**30
FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1018.00MiB"


def weights(**leaves) -> dict:
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in leaves.items()}


def test_threads_share_what_is_free_by_the_largest_matrix_that_is_tried_out(monkeypatch):
    monkeypatch.setattr("jaxdeploy.engine.compile_pool.MOST_THREADS", 16)
    head = weights(head=((128256, 4096), jnp.bfloat16), norm=((2**30,), jnp.bfloat16))
    int4 = head | {"layers": weights(words=((32, 2**30), jnp.int32))}
    assert threads_that_fit(int4, 18 * GIB) == 9, "one of 0.98 GiB and its results"
    assert threads_that_fit(int4, 100 * GIB) == 16
    assert threads_that_fit(int4, 1 * GIB) == 1
    dense = {"layers": weights(up=((32, 2**30 // 2, 2), jnp.bfloat16))}
    assert threads_that_fit(dense, 16 * GIB) == 4, "a layer of a stack is one matrix"


def test_a_program_that_found_no_memory_is_compiled_again_when_the_others_are_done():
    lock, running, calls = threading.Lock(), [0], {"a": 0, "b": 0, "c": 0}

    def compile(name: str, result: int) -> int:
        with lock:
            running[0] += 1
            calls[name] += 1
            alone, first = running[0] == 1, calls[name] == 1
        try:
            if name == "b" and first:
                raise jax.errors.JaxRuntimeError(FULL)
            assert name != "b" or alone
            return result
        finally:
            with lock:
                running[0] -= 1

    with CompilePool(compile, 3) as pool:
        for number, name in enumerate("abc"):
            pool.submit(name, name, number)
        found = list(pool.results())
    assert sorted(found) == [("a", 0), ("b", 1), ("c", 2)]
    assert found[-1] == ("b", 1)
    assert calls == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL: broken"), ValueError("wrong")], ids=str)
def test_what_else_goes_wrong_is_told(error):
    def compile() -> None:
        raise error

    with CompilePool(compile) as pool:
        pool.submit("any")
        with pytest.raises(type(error), match=str(error)):
            list(pool.results())


def test_one_that_does_not_fit_alone_is_told():
    def compile() -> None:
        raise jax.errors.JaxRuntimeError(FULL)

    with CompilePool(compile) as pool:
        pool.submit("any")
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            list(pool.results())
