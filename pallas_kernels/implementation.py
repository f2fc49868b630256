"""The choice between a kernel and its reference, the same for every kernel that has one of each."""

from collections.abc import Callable
from typing import Any

from jax import lax

IMPLEMENTATIONS = ("mosaic", "reference")
"""The default takes "mosaic" where a program is compiled for CUDA and the kernel can take the call and is worth it."""


def run_implementation(
    implementation: str | None,
    reason_not: str | None,
    kernel: Callable,
    reference: Callable,
    *arrays: Any,
    worth_it: bool = True,
) -> Any:
    """Run the named implementation, or leave the choice to the platform that the program is compiled for.

    Args:
        implementation: one of IMPLEMENTATIONS, or None for the default.
        reason_not: why the kernel can't take the call, None if it can.
        kernel, reference: take ``arrays``, return the same structure.
        worth_it: whether the default takes the kernel; a name takes it anyway.

    Raises:
        ValueError: an unknown implementation, or the kernel by name where it can't take the call.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"{implementation=} is unknown; there are {IMPLEMENTATIONS}")
    if implementation == "mosaic":
        if reason_not:
            raise ValueError(f"{implementation=} can't take this call: {reason_not}")
        return kernel(*arrays)
    if implementation == "reference" or reason_not or not worth_it:
        return reference(*arrays)
    return lax.platform_dependent(*arrays, cuda=kernel, default=reference)
