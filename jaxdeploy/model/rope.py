"""Rotary position embeddings: frequencies per request, and the rotation of q and k.

Half-split pairs, as Hugging Face checkpoints store them: dimension i turns with dimension i + H/2.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from jaxdeploy.config.rope import RopeConfig
from pallas_kernels.kv_write.reference import apply_rotation


def inverse_frequencies(
    rope: RopeConfig, head_dim: int, length: Int32[Array, " B"]
) -> Float32[Array, "B {head_dim//2}"]:
    """Radians per position of each pair of dimensions, for each request.

    Args:
        rope: the variant.
        head_dim: H, even.
        length: tokens that each request can reach (prompt + new tokens). Fixed for the life of a request, so that
            cached keys stay valid; only dynamic and longrope look at it.

    Accuracy: constants are computed in float64; dynamic NTK stays within 1e-6 relative of its float64 value.
    """
    plain = plain_frequencies(rope.theta, head_dim)
    grown = length.astype(jnp.int32)[:, None] - rope.original_max_position
    match rope.kind:
        case "dynamic":
            # base' = base * r^(d/(d-2)) with r = f*L/Lmax - (f-1) = 1 + f*(L-Lmax)/Lmax, so frequency i shrinks by
            # r^(-2i/(d-2)). So no large power is taken in float32, and L <= Lmax gives the plain constant.
            log_r = jnp.log1p(
                jnp.maximum(grown, 0).astype(jnp.float32) * np.float32(rope.factor / rope.original_max_position)
            )
            exponent = np.arange(head_dim // 2) * (2.0 / max(head_dim - 2, 1))
            return jnp.float32(plain) * jnp.exp(-log_r * jnp.float32(exponent))
        case "longrope":
            short, long = (
                jnp.float32(plain / np.asarray(f, np.float64)) for f in (rope.short_factor, rope.long_factor)
            )
            return jnp.where(grown > 0, long, short)
    return jnp.broadcast_to(jnp.float32(_fixed_frequencies(rope, head_dim, plain)), (length.shape[0], head_dim // 2))


def rotation_tables(
    positions: Int32[Array, " T"], inv_freq: Float[Array, "T F"], attention_factor: float = 1.0
) -> tuple[Float32[Array, "T F"], Float32[Array, "T F"]]:
    """(cos, sin) of every token's angles, times the attention factor; compute once, use in every layer."""
    angles = positions.astype(jnp.float32)[:, None] * inv_freq.astype(jnp.float32)
    return jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor


def rotate(
    x: Float[Array, "T N H"],
    positions: Int32[Array, " T"],
    inv_freq: Float[Array, "T F"],
    attention_factor: float = 1.0,
) -> Float[Array, "T N H"]:
    """Rotates q or k of T tokens.

    Args:
        x: heads of each token.
        positions: of each token in its own request.
        inv_freq: radians per position, the row of each token's request; F = H/2.
        attention_factor: multiplies the result (yarn, longrope); ``RopeConfig.attention_factor``.

    Angles, cos and sin and the products are float32; only the result is rounded to x's dtype.
    """
    return apply_rotation(x, *rotation_tables(positions, inv_freq, attention_factor))


def plain_frequencies(theta: float, head_dim: int) -> np.ndarray:
    """theta^(-2i/H), i < H/2, float64: RoFormer (arXiv:2104.09864) section 3.2.2."""
    return np.float64(theta) ** (-np.arange(0, head_dim, 2) / head_dim)


def _fixed_frequencies(rope: RopeConfig, head_dim: int, plain: np.ndarray) -> np.ndarray:
    match rope.kind:
        case "linear":
            return plain / rope.factor
        case "factors":
            return plain / np.asarray(rope.factors, np.float64)
        case "llama3":
            return _llama3(rope, plain)
        case "yarn":
            return _yarn(rope, head_dim, plain)
    return plain


def _llama3(rope: RopeConfig, plain: np.ndarray) -> np.ndarray:
    """Llama 3.1: slow dimensions are divided by the factor, fast ones kept, those between blended."""
    rotations = rope.original_max_position * plain / (2 * math.pi)  # full turns over the original context
    keep = (rotations - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, 0, 1)
    return plain * (keep + (1 - keep) / rope.factor)


def _yarn(rope: RopeConfig, head_dim: int, plain: np.ndarray) -> np.ndarray:
    """YaRN (arXiv:2309.00071) section 3.2: a ramp over dimensions between beta_fast and beta_slow rotations."""

    def dimension(rotations: float) -> float:
        turns = rope.original_max_position / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # the published code's guard against a ramp of no width
    stretched = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    return plain * (1 - stretched + stretched / rope.factor)
