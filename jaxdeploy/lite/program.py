"""How the quantizer's programs are compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

COMPILER_OPTIONS: dict[str, str | bool | int | float] = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
}
"""On a GPU matrix products go to cuBLAS, by its own choice of kernel. XLA would try dozens for each of them, which pays for a step
that runs a million times and not for programs that run a few hundred times. Other platforms do not look at these options."""


def program(
    function: Callable[..., Any], *, static_argnums: tuple[int, ...] = (), donate_argnums: tuple[int, ...] = ()
) -> Any:
    """``jax.jit`` of a function that is called by the host only, never inside of another program."""
    return jax.jit(
        function, static_argnums=static_argnums, donate_argnums=donate_argnums, compiler_options=COMPILER_OPTIONS
    )


def programs(*, static_argnums: tuple[int, ...] = (), donate_argnums: tuple[int, ...] = ()) -> Callable[..., Any]:
    """``program`` as a decorator with arguments."""
    return partial(program, static_argnums=static_argnums, donate_argnums=donate_argnums)


@programs(static_argnums=(1,))
def cast(arrays: dict[str, Any], dtype: str) -> dict[str, jax.Array]:
    """All arrays of a layer in another dtype, by one launch."""
    return {name: array.astype(dtype) for name, array in arrays.items()}
