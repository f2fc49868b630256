"""Prefill attention on Hopper: ragged chunks of queries over the pages of their sequences.

A block takes 128 queries of one sequence and one query head; the longest tiles are started first.

    warpgroup 2       page numbers from the block table, then TMA copies of 128 keys and values at a time into a ring
                      (integers: warpgroups 2 and 3 copy raw keys and values and make them float16; so are the queries then)
    warpgroups 0, 1   64 queries each: S = Q K^T (``wgmma``), softmax in registers, O += P V (``wgmma``). A barrier makes one
                      of them do its softmax while the other has the tensor cores (FlashAttention-3, Shah et al. 2024, 3.1).

Only tiles at the diagonal, at the window's edge and at the end of a context are masked.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32, Num

from pallas_kernels import ptx
from pallas_kernels.paged_attention.prefill_convert import convert_raw, copy_raw, init_raw, wait_raw
from pallas_kernels.paged_attention.prefill_shape import PrefillShape
from pallas_kernels.paged_attention.prefill_tiles import QUERY_TILE, WARPGROUP_QUERIES, Tiles
from pallas_kernels.paged_attention.swizzled import clear_rows, load_rows, store_rows, transforms

_LOWEST = -1e30
_NO_WINDOW = 1 << 30
_L = plgpu.Layout
_ACC = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]


def prefill_tiles_attention(
    q: Float[Array, "T N H"],
    pools: tuple[Num[Array, "L P K page _"], ...],
    layer: Int32[Array, ""],
    block_table: Int32[Array, "B W"],
    tiles: Tiles,
    context_lens: Int32[Array, " B"],
    window: Int32[Array, ""],
    shape: PrefillShape,
) -> Float[Array, "T N H"]:
    """Attention of all tiles; queries of no row come out 0. ``pools`` are K, V and, for integers, K's and V's pairs."""
    scalars = layer.reshape(1), window.reshape(1)
    call = _call(shape, tiles.row.shape[0])
    if shape.bits != 16:
        out = call(q.astype(jnp.float16), *scalars, block_table, *tiles, context_lens, *pools)
        return lax.bitcast_convert_type(out, q.dtype)
    pools = tuple(pool.reshape(-1, *pool.shape[3:]) for pool in pools)
    return call(q, *scalars, block_table, *tiles, context_lens, *pools)


def steps_of_warpgroup(position, window, step_begin, step_end, key_tile: int):
    """Where a warpgroup whose first query is at ``position`` begins to see whole key tiles, ceases to, and sees no more of any.

    All three lie in the tile's own steps: the two warpgroups count turns, and must come to the same number. Positions of queries
    of no row (padding) are negative.
    """
    mine_end = jnp.clip(pl.cdiv(position + WARPGROUP_QUERIES, key_tile), step_begin, step_end)
    full_begin = pl.cdiv(jnp.maximum(position + WARPGROUP_QUERIES - window, 0), key_tile)
    full_begin = jnp.clip(full_begin, step_begin, mine_end)
    full_end = jnp.clip((position + 1) // key_tile, full_begin, mine_end)
    return full_begin, full_end, mine_end


def _tiled(shape: tuple[int, ...], dtype):
    return plgpu.SMEM(shape, dtype, transforms=transforms(shape[-1]))


@functools.lru_cache(maxsize=256)
def _call(shape: PrefillShape, tiles: int):
    dtype = jnp.dtype(shape.dtype if shape.bits == 16 else "float16")
    ring = (shape.stages, shape.key_tile, shape.head_dim)
    arrivals = max(1, shape.key_tile // shape.page_size) if shape.bits == 16 else 1

    def paged_prefill(*refs, **scratch):
        _paged_prefill(*refs, **scratch, shape=shape, tiles=tiles)

    return jax.jit(
        plgpu.kernel(
            paged_prefill,
            out_type=jax.ShapeDtypeStruct((shape.tokens, shape.heads, shape.head_dim), dtype),
            scratch_types={
                "q_smem": _tiled((2, WARPGROUP_QUERIES, shape.head_dim), dtype),
                "k_smem": _tiled(ring, dtype),
                "v_smem": _tiled(ring, dtype),
                "raw": [] if shape.bits == 16 else [plgpu.SMEM((shape.raw.words,), jnp.int32) for _ in range(2)],
                "k_full": plgpu.Barrier(num_arrivals=arrivals, num_barriers=shape.stages),
                "v_full": plgpu.Barrier(num_arrivals=arrivals, num_barriers=shape.stages),
                "k_free": plgpu.Barrier(num_arrivals=2, num_barriers=shape.stages),
                "v_free": plgpu.Barrier(num_arrivals=2, num_barriers=shape.stages),
                "turn": plgpu.Barrier(num_arrivals=2),
            },
            grid=(shape.heads, tiles),
            grid_names=("head", "tile"),
            num_threads=3 if shape.bits == 16 else 4,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(approx_math=True),
        )
    )


def _paged_prefill(
    q_ref, layer_ref, window_ref, table_ref, row_ref, begin_ref, end_ref, lens_ref, *pools_and_out,
    shape: PrefillShape, tiles: int, q_smem, k_smem, v_smem, raw, k_full, v_full, k_free, v_free, turn,
):  # fmt: skip
    *pools, out_ref = pools_and_out
    head, wg = lax.axis_index("head"), lax.axis_index("warpgroup")
    tile = tiles - 1 - lax.axis_index("tile")
    row, begin, end = row_ref[tile], begin_ref[tile], end_ref[tile]
    key_tile, stages = shape.key_tile, shape.stages

    @pl.when(begin < end)
    def _block():
        length = jnp.where(row < shape.rows, lens_ref[jnp.minimum(row, shape.rows - 1)], 0)
        window = window_ref[0]
        window = jnp.where(window == 0, _NO_WINDOW, window)
        # Positions in the sequence: of the tile's first query, and one past what its last one sees.
        first = length - (end - begin)
        seen_end = jnp.where(row < shape.rows, jnp.minimum(first + QUERY_TILE, length), 0)
        step_begin = jnp.maximum(first - window + 1, 0) // key_tile
        step_end = pl.cdiv(seen_end, key_tile)

        kv_head = head // (shape.heads // shape.kv_heads)
        place = layer_ref[0], row, kv_head, length
        buffers = (k_smem, k_full, k_free), (v_smem, v_full, v_free)
        steps = step_begin, step_end
        if shape.bits == 16:

            @pl.when(wg == 2)
            def _load():
                plgpu.set_max_registers(shape.registers[1], action="decrease")
                _load_pages(pools, table_ref, place, steps, buffers, shape)

        else:
            for which in range(2):

                @pl.when(wg == 2 + which)
                def _convert(which=which):
                    plgpu.set_max_registers(shape.registers[1], action="decrease")
                    pair = pools[which], pools[2 + which]
                    _convert_pages(pair, raw[which], table_ref, place, steps, buffers[which], shape)

        @pl.when(wg < 2)
        def _compute():
            plgpu.set_max_registers(shape.registers[0], action="increase")
            queries = begin + wg * WARPGROUP_QUERIES
            load_rows(q_ref, q_smem, wg, queries, end, head)
            position = first + wg * WARPGROUP_QUERIES
            full_begin, full_end, mine_end = steps_of_warpgroup(position, window, step_begin, step_end, key_tile)
            step = functools.partial(
                _attend, shape=shape, step_begin=step_begin, step_end=step_end, position=position, length=length,
                window=window, q_smem=q_smem.at[wg], k_smem=k_smem, v_smem=v_smem, k_full=k_full, v_full=v_full,
                k_free=k_free, v_free=v_free, turn=turn,
            )  # fmt: skip

            def row_of(value):
                return plgpu.layout_cast(jnp.full((WARPGROUP_QUERIES,), value, jnp.float32), _L.WGMMA.reduce(1))

            part = shape.head_dim // shape.outputs
            zeros = plgpu.layout_cast(jnp.zeros((WARPGROUP_QUERIES, part), jnp.float32), _L.WGMMA)
            state = (zeros,) * shape.outputs, row_of(_LOWEST), row_of(0.0)

            @pl.when(step_begin < step_end)
            def _first_keys():
                plgpu.barrier_wait(k_full.at[0])

            @pl.when(wg == 1)
            def _second():
                _change_turn(turn)

            state = lax.fori_loop(step_begin, full_begin, functools.partial(step, masked=True), state)
            state = lax.fori_loop(full_begin, full_end, functools.partial(step, masked=False), state)
            outputs, _, total = lax.fori_loop(full_end, mine_end, functools.partial(step, masked=True), state)

            @pl.loop(mine_end, step_end)
            def _skip(step):
                # The other warpgroup has one more step: keep the ring and the turns going.
                slot = lax.rem(step - step_begin, stages)
                plgpu.barrier_arrive(k_free.at[slot])
                plgpu.barrier_arrive(v_free.at[slot])
                _change_turn(turn)
                _change_turn(turn)

            @pl.when(wg == 0)
            def _last():
                _change_turn(turn)

            total = jnp.where(total == 0.0, 1.0, total)
            for i, acc in enumerate(outputs):
                result = (acc * lax.broadcast_in_dim(1.0 / total, acc.shape, [0])).astype(shape.dtype)
                if shape.bits != 16:
                    # Shared memory and output are declared float16, what goes through them has the queries' own type.
                    result = lax.bitcast_convert_type(result, jnp.float16)
                _columns(q_smem.at[wg], i, shape)[...] = result
            plgpu.commit_smem()
            store_rows(q_smem, out_ref, wg, queries, end, head)


def _load_pages(pools, table_ref, place, steps, buffers, shape: PrefillShape) -> None:
    """Steps of keys and values as they are, by TMA; pools are [L * P * K, page, H]."""
    (layer, row, kv_head, length), (step_begin, step_end) = place, steps
    piece = min(shape.key_tile, shape.page_size)

    @pl.loop(step_begin, step_end)
    def _step(step):
        count = step - step_begin
        slot = lax.rem(count, shape.stages)
        for pool, (smem, full, free) in zip(pools, buffers, strict=True):

            @pl.when(count >= shape.stages)
            def _wait(free=free):
                plgpu.barrier_wait(free.at[slot])

            for i in range(shape.key_tile // piece):
                token = step * shape.key_tile + i * piece
                # Past the context the last page is read again: masked, but a page that exists.
                entry = table_ref[row, jnp.minimum(token, length - 1) // shape.page_size]
                page = (layer * shape.pages + entry) * shape.kv_heads + kv_head
                source = pool.at[page, pl.ds(token % shape.page_size, piece)]
                plgpu.copy_gmem_to_smem(source, smem.at[slot, pl.ds(i * piece, piece)], full.at[slot])


def _convert_pages(pools, raw, table_ref, place, steps, buffers, shape: PrefillShape) -> None:
    """Steps of integer keys or values, made float16 on the way; pools are the integers and their pairs."""
    (layer, row, kv_head, length), (step_begin, step_end) = place, steps
    smem, full, free = buffers
    tiles = shape.raw
    parts = shape.key_tile // tiles.tile
    count = (step_end - step_begin) * parts
    init_raw(raw, tiles)

    def copy(i):
        token = step_begin * shape.key_tile + i * tiles.tile
        scalars = [lax.rem(i, tiles.stages), layer, row, kv_head, token, length]
        copy_raw(
            raw, tiles, pools, table_ref, pages=shape.pages, kv_heads=shape.kv_heads, page_size=shape.page_size,
            scalars=scalars,
        )  # fmt: skip

    @pl.loop(0, jnp.minimum(tiles.stages, count))
    def _first(i):
        copy(i)

    @pl.loop(0, count)
    def _tile(i):
        step, part = i // parts, lax.rem(i, parts)
        slot, stage = lax.rem(step, shape.stages), lax.rem(i, tiles.stages)
        wait_raw(raw, tiles, stage, lax.rem(i // tiles.stages, 2))

        @pl.when((part == 0) & (step >= shape.stages))
        def _wait():
            plgpu.barrier_wait(free.at[slot])

        convert_raw(raw, smem, tiles, stage, slot, part * tiles.tile)

        @pl.when(part == parts - 1)
        def _done():
            plgpu.commit_smem()
            plgpu.barrier_arrive(full.at[slot])

        @pl.when(i + tiles.stages < count)
        def _next():
            copy(i + tiles.stages)


def _change_turn(turn) -> None:
    plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(turn)


def _attend(
    step, state, *, masked: bool, shape: PrefillShape, step_begin, step_end, position, length, window,
    q_smem, k_smem, v_smem, k_full, v_full, k_free, v_free, turn,
):  # fmt: skip
    """One step of a warpgroup: the keys of one slot of the ring."""
    outputs, maximum, total = state
    key_tile, stages = shape.key_tile, shape.stages
    tile_shape = (WARPGROUP_QUERIES, key_tile)
    slot = lax.rem(step - step_begin, stages)

    def scores_of(acc_ref):
        plgpu.wgmma(acc_ref, q_smem, k_smem.at[slot].transpose((1, 0)))
        _change_turn(turn)
        return acc_ref[...]

    scores = pl.run_scoped(scores_of, _ACC(tile_shape, jnp.float32))
    plgpu.barrier_arrive(k_free.at[slot])

    # Scores in powers of two; without a cap the factor is applied in the exponent, where it is part of an fma.
    factor = shape.scale * math.log2(math.e)
    if shape.soft_cap:
        scores = _capped(scores, shape)
        factor = 1.0
    if masked:
        places = plgpu.broadcasted_iota(jnp.int32, tile_shape, 1, layout=_L.WGMMA)
        rows = plgpu.broadcasted_iota(jnp.int32, tile_shape, 0, layout=_L.WGMMA)
        distance = (rows - places) + (position - step * key_tile)
        scores = jnp.where((distance >= 0) & (distance < window), scores, -jnp.inf)
    new_maximum = jnp.maximum(maximum, scores.max(axis=1) * factor)
    decay = jnp.exp2(maximum - new_maximum)
    weights = jnp.exp2(scores * factor - lax.broadcast_in_dim(new_maximum, tile_shape, [0]))
    outputs = tuple(acc * lax.broadcast_in_dim(decay, acc.shape, [0]) for acc in outputs)
    total *= decay
    operand = weights.astype(v_smem.dtype)
    total += weights.sum(axis=1)
    outputs, total, new_maximum, operand = lax.optimization_barrier((outputs, total, new_maximum, operand))
    plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(v_full.at[slot])
    if masked:

        @pl.when(step * key_tile + key_tile > length)
        def _clear():
            # What an earlier owner left in the rest of a page may be a NaN: weight 0 doesn't silence that.
            clear_rows(v_smem, slot, length - step * key_tile)

    plgpu.barrier_wait(turn)

    def weighted(acc_refs):
        for i, acc_ref in enumerate(acc_refs):
            plgpu.wgmma(acc_ref, operand, _columns(v_smem.at[slot], i, shape))

        @pl.when(step + 1 < step_end)
        def _next_keys():
            plgpu.barrier_wait(k_full.at[lax.rem(step + 1 - step_begin, stages)])

    outputs = pl.run_state(weighted)(tuple(_ACC.init(acc) for acc in outputs))
    plgpu.barrier_arrive(v_free.at[slot])
    return outputs, new_maximum, total


def _columns(smem, i: int, shape: PrefillShape):
    """Those of shared memory [R, H] that belong to the i-th accumulator."""
    part = shape.head_dim // shape.outputs
    return smem if shape.outputs == 1 else smem.at[:, pl.ds(i * part, part)]


def _capped(scores, shape: PrefillShape):
    """``cap * tanh(score / cap)`` in powers of two; the approximate tanh instruction keeps only 11 bits."""
    doubled = jnp.exp2(scores * (2.0 * shape.scale * math.log2(math.e) / shape.soft_cap))
    return (1.0 - 2.0 / (1.0 + doubled)) * (shape.soft_cap * math.log2(math.e))
