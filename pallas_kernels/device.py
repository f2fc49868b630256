"""What the kernels ask of the GPU."""

from dataclasses import dataclass

import jax

HOPPER = (9, 0)
HOPPER_TABLE = "h100"
"""The tuned table of a Hopper GPU that has none of its own, or none of a shape."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that programs are made for.

    Attributes:
        capability: compute capability, major and minor.
        name: of a tuned table: ``h100``, ``h200``, or the GPU's own name.
        multiprocessors: how many it has.
    """

    capability: tuple[int, int]
    name: str
    multiprocessors: int


_assumed = Gpu(HOPPER, HOPPER_TABLE, 132)


def assume_gpu(gpu: Gpu) -> None:
    """Have this process, which has no GPU itself, lower programs for that one from now on; until then it is an H100."""
    global _assumed
    _assumed = gpu


def current_gpu() -> Gpu:
    """This process's GPU; where it has none, the one it is to lower for."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return _assumed
    major, minor = str(device.compute_capability).split(".")
    kind = device.device_kind.lower()
    name = next((name for name in ("h100", "h200") if name in kind), kind.replace(" ", "-"))
    return Gpu((int(major), int(minor)), name, device.core_count)


def gpu_capability() -> tuple[int, int]:
    """Compute capability of ``current_gpu``."""
    return current_gpu().capability


def device_name() -> str:
    """The tuned table's name of ``current_gpu``."""
    return current_gpu().name


def reason_not_hopper() -> str | None:
    """Why a kernel of Hopper's own instructions can't run on this GPU; None if it can."""
    capability = gpu_capability()
    if capability[0] == HOPPER[0]:
        return None
    return f"the kernel is Hopper's, this GPU has compute capability {capability}"
