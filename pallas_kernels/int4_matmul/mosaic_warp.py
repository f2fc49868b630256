"""Int4 matmul for few tokens: the time is the time to read the weights.

A block owns ``16 * strips`` outputs and all inputs. Each of its warps owns every ``warps``-th block of 128 inputs and runs a
pipeline of its own; no warp waits for another before the end:

    each warp   cp.async   tiles, scales and x of its inputs into its part of a ring in shared memory, ``stages`` deep
                mma        nibbles become 128 + q (bfloat16) or 1024 + q (float16) with one lop3 for two weights;
                           x enters as the B operand (8 tokens an instruction), through ldmatrix
                fma        once for each tile: accumulator += scale * (products - (128 + zero) * sum of x)
    all warps   add their accumulators through shared memory, apply the epilogue, write the outputs

So neither scale nor zero point costs an instruction per weight, and a weight byte crosses the chip once. The sum of x over a
group is one more mma with a matrix of ones, shared by all strips. Every instruction is one of compute capability 8.0.

For a token or two the residual add and the norm before the matmul can be part of it: each block makes the normalized token for
itself, in shared memory, while its first weights are under way; a kernel of its own would be a launch and 1.7 us.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx
from pallas_kernels.int4_matmul.tiles import BLOCK
from pallas_kernels.int4_matmul.warp_code import WarpCode
from pallas_kernels.int4_matmul.warp_cut import MAX_SHARED, WarpConfig


def int4_matmul_warp(
    x: Float[Array, "M K"],
    words: Int32[Array, "L Ns Kb 256"],
    meta: Int32[Array, "L Ns Kb Gt 16"],
    layer: Int32[Array, " 1"],
    *,
    outputs: int,
    config: WarpConfig,
    gated: bool = False,
) -> Float[Array, "M N"]:
    """``x @ w[layer].T`` for tiles as ``tiles.to_tiles`` writes them, accumulated in float32.

    Args:
        x: bfloat16 or float16.
        words, meta: stacks of layers.
        layer: which.
        outputs: N, even.
        config: how the work is cut.
        gated: outputs are those of a gate and of what it gates in turns of 8; returns ``silu(gate) * up``, N / 2 wide.

    Raises:
        ValueError: a config that doesn't fit into shared memory.
    """
    call = _call(*x.shape, outputs, words.shape, meta.shape[3], jnp.dtype(x.dtype).name, config, gated, None)
    (out,) = call(x, words.reshape(-1), meta.reshape(-1), layer)
    return out


def norm_int4_matmul_warp(
    x: Float[Array, "M K"],
    delta: Float[Array, "M K"],
    gain: Float[Array, "L K"],
    words: Int32[Array, "L Ns Kb 256"],
    meta: Int32[Array, "L Ns Kb Gt 16"],
    layer: Int32[Array, " 1"],
    *,
    eps: float,
    outputs: int,
    config: WarpConfig,
    gated: bool = False,
) -> tuple[Float[Array, "M K"], Float[Array, "M N"]]:
    """``x + delta``, rounded, and ``int4_matmul_warp`` of ``rms_norm`` of that times ``gain[layer]``.

    Raises:
        ValueError: as ``int4_matmul_warp``; or K is no multiple of 128.
    """
    call = _call(*x.shape, outputs, words.shape, meta.shape[3], jnp.dtype(x.dtype).name, config, gated, eps)
    return call(x, delta, gain, words.reshape(-1), meta.reshape(-1), layer)


@functools.lru_cache(maxsize=512)
def _call(
    m: int,
    k: int,
    outputs: int,
    words_shape: tuple[int, ...],
    groups: int,
    dtype: str,
    config: WarpConfig,
    gated: bool,
    eps: float | None,
):
    if eps is not None and k % BLOCK:
        raise ValueError(f"{k} inputs must be a multiple of {BLOCK} to be normalized")
    _, all_strips, blocks, _ = words_shape
    grid, rounds = config.grid(all_strips)
    shared = config.shared_bytes(m, groups, rounds, 0 if eps is None else k)
    if shared > MAX_SHARED:
        raise ValueError(f"{config} takes {shared} bytes of shared memory for {m} tokens, there are {MAX_SHARED}")

    def body(*refs):
        @ptx.inline(*(plgpu.RefType(),) * len(refs))
        def emit(*refs):
            WarpCode(m, k, outputs, all_strips, blocks, groups, dtype, config, gated, eps).emit(*refs)

        emit(*refs)

    body.__name__ = f"int4_matmul_warp_{m}x{k}x{outputs}" if eps is None else f"norm_int4_matmul_warp_{m}x{k}x{outputs}"
    out = jax.ShapeDtypeStruct((m, outputs // 2 if gated else outputs), dtype)
    return jax.jit(
        plgpu.kernel(
            body,
            out_type=(out,) if eps is None else (jax.ShapeDtypeStruct((m, k), dtype), out),
            scratch_types=[plgpu.SMEM((shared // 4,), jnp.int32)],
            grid=(grid,),
            grid_names=("tile",),
            num_threads=config.warps // 4,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(approx_math=True),
        )
    )
