"""What the kernels ask of the GPU."""

import jax

HOPPER = (9, 0)
HOPPER_TABLE = "h100"
"""The tuned table of a Hopper GPU that has none of its own, or none of a shape."""


def gpu_capability() -> tuple[int, int]:
    """Compute capability of this process's GPU; Hopper's where it has none, so that such a machine lowers what an H100 runs."""
    if jax.default_backend() != "gpu":
        return HOPPER
    major, minor = str(jax.devices()[0].compute_capability).split(".")
    return (int(major), int(minor))


def device_name() -> str:
    """Of a tuned table: ``h100``, ``h200``, or the GPU's own name; ``h100`` on a machine that has none."""
    if jax.default_backend() != "gpu":
        return HOPPER_TABLE
    kind = jax.devices()[0].device_kind.lower()
    return next((name for name in ("h100", "h200") if name in kind), kind.replace(" ", "-"))


def reason_not_hopper() -> str | None:
    """Why a kernel of Hopper's own instructions can't run on this GPU; None if it can."""
    capability = gpu_capability()
    if capability[0] == HOPPER[0]:
        return None
    return f"the kernel is Hopper's, this GPU has compute capability {capability}"
