"""A program as bytes: traced in one process, compiled in another."""

import jax
from jax import export

from jaxdeploy.engine.step import Program

PLATFORMS = {"gpu": "cuda", "cpu": "cpu"}
"""Names of what programs are lowered for, by those of backends."""
_MOSAIC = [export.DisabledSafetyCheck.custom_call(name) for name in ("mosaic_gpu", "mosaic_gpu_v2")]
"""JAX refuses to export kernels: their format may change from version to version. Here one installation reads what it wrote."""


def trace(program: Program, platform: str) -> bytes:
    """Trace and lower a program; no device of the platform ("gpu" or "cpu") need be there."""
    leaves, structure = jax.tree.flatten(program.arguments)

    def flat(*leaves):
        return jax.tree.leaves(program.function(*jax.tree.unflatten(structure, leaves)))

    whole = export.export(
        jax.jit(flat, keep_unused=True), platforms=[PLATFORMS[platform]], disabled_checks=_MOSAIC
    )(*leaves)  # fmt: skip
    return bytes(whole.serialize())


def lower(program: Program, traced: bytes) -> jax.stages.Lowered:
    """What ``program.lower()`` returns, from what ``trace`` made of the same program."""
    exported, structure = export.deserialize(bytearray(traced)), jax.tree.structure(program.results)

    def step(*arguments):
        return jax.tree.unflatten(structure, exported.call(*jax.tree.leaves(arguments)))

    return jax.jit(step, donate_argnums=program.donated, keep_unused=True).lower(*program.arguments)
