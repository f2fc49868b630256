"""Decode attention on Hopper: the time is the time to read the cache.

The grid is one block for each multiprocessor. A block holds ``groups`` pipelines that know nothing of each other; each walks over
units of work (sequence, chunk of its context, KV head, part of its columns) with a stride:

    a warp of the last    for each unit, tile by tile: page numbers from the block table, then bulk copies of K, V and their pairs
    warpgroup             into the next free stage of a ring. It runs ahead over the borders of units.
    a warpgroup           takes the tiles. A warp owns 16 tokens of each 64:
                          S = K Q^T, softmax in registers with a maximum of the warp's own, O += V^T P, all by ``mma``
    at a unit's end       its warps' maxima, sums and outputs are joined through shared memory. A context of one chunk is done;
                          else they are stored as float32. In small batches who stores the last chunk of a context merges all
                          (``unit_result``), in others a second kernel does (``merge_mosaic``)

A column of the products is a query head of one of the row's query tokens. With several tokens (a draft that is checked in one step)
each column sees its own part of the context, and columns past a unit's make another unit, which finds the tokens in the L2 cache.
There a second kernel merges the chunks (``merge_mosaic``).

Integers enter the products as they are stored; scales and offsets are applied to scores and weights:
``s = scale_t (q . k_t) + min_t sum(q)`` and ``o = sum_t (p_t scale_t) v_t + sum_t p_t min_t``.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32, Num

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention.decode_block import DecodeBlock
from pallas_kernels.paged_attention.decode_layout import DecodeConfig, Layout, Shape
from pallas_kernels.paged_attention.split import Split


def decode_rows(
    q: Float[Array, "B N H"],
    pools: tuple[Num[Array, "L P K page _"], ...],
    layer: Int32[Array, " 1"],
    block_table: Int32[Array, "B W"],
    context_lens: Int32[Array, " B"],
    window: Int32[Array, " 1"],
    shape: Shape,
    config: DecodeConfig,
) -> Float[Array, "B N H"]:
    """Attention of one query token a row by a kernel that merges: in the queries' type.

    ``pools`` are K, V and, for integers, K's and V's pairs.
    """
    split = split_of(shape, config)
    counters = ()
    if split.max_chunks > 1:
        # Each call leaves the zeros that it found, and a layer's call waits for that of the layer before: the one buffer that XLA
        # makes of all these zeros, filled once a step, serves every layer in turn.
        counters = (jnp.zeros((shape.batch, shape.kv_heads, shape.parts), jnp.int32),)
    call = _call(shape, config, split, str(q.dtype), merges=True)
    return call(q, layer, block_table, context_lens, window, *pools, *counters)[0]


def decode_partials(
    q: Float[Array, "T N H"],
    pools: tuple[Num[Array, "L P K page _"], ...],
    layer: Int32[Array, " 1"],
    block_table: Int32[Array, "B W"],
    query_start: Int32[Array, " S"] | None,
    context_lens: Int32[Array, " B"],
    window: Int32[Array, " 1"],
    shape: Shape,
    config: DecodeConfig,
) -> tuple[Float[Array, "B C R H"], Float[Array, "B C R 2"]]:
    """The chunks' outputs (times their sums) and their (maximum, sum), for ``merge_partials``.

    ``query_start`` is [B + 1], None where each row has one query; R is ``shape.rows``. What lies past the number of chunks of a
    sequence, or its queries, is not written.
    """
    starts = () if query_start is None else (query_start,)
    call = _call(shape, config, split_of(shape, config), str(q.dtype), merges=False)
    return call(q, layer, block_table, context_lens, window, *starts, *pools)


def split_of(shape: Shape, config: DecodeConfig) -> Split:
    """How the contexts of a call are cut."""
    return Split.of(tile=config.tile, chunk=config.chunk, table_tokens=shape.table_width * shape.page_size)


def results(shape: Shape, split: Split, dtype: str, *, merges: bool) -> list[jax.ShapeDtypeStruct]:
    """What the kernel writes: the output if it merges; partials and stats unless that is all there is."""
    lead = (shape.batch, split.max_chunks, shape.rows)
    partial = [jax.ShapeDtypeStruct((*lead, size), jnp.float32) for size in (shape.stored.head_dim, 2)]
    if not merges:
        return partial
    output = jax.ShapeDtypeStruct((shape.batch, shape.heads, shape.stored.head_dim), jnp.dtype(dtype))
    return [output, *(partial if split.max_chunks > 1 else [])]


@functools.lru_cache(maxsize=512)
def _call(shape: Shape, config: DecodeConfig, split: Split, dtype: str, *, merges: bool):
    layout = Layout(shape, config)

    def paged_decode(*refs):
        types = [plgpu.RefType() for _ in refs]

        def emit(*buffers):
            DecodeBlock(shape, config, split, layout, buffers, merges=merges).run()

        ptx_sync.run_inline(emit, types, *refs)

    return jax.jit(
        plgpu.kernel(
            paged_decode,
            out_type=tuple(results(shape, split, dtype, merges=merges)),
            scratch_types=[plgpu.SMEM((layout.total // 4,), jnp.int32)],
            grid=(config.grid,),
            grid_names=("block",),
            num_threads=config.groups + 1,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(),
        )
    )
