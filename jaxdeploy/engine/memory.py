"""Sizes an engine's cache: weights and step buffers first, then a share of what is left."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeploy.cache.kv_pages import page_bytes
from jaxdeploy.cache.sizing import MARGIN_BYTES, MemoryPlan, count_pages, device_bytes, tree_bytes
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.engine.buckets import Buckets
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.program_cache import ProgramCache
from jaxdeploy.engine.program_set import ProgramSet, create_state
from jaxdeploy.errors import MemoryBudgetError
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.sampling.extent import Extent

CPU_POOL_BYTES = 2**30
QUICK_OPTIONS: dict[str, dict[str, str | bool | int | float]] = {"gpu": {"xla_gpu_autotune_level": 0}}
"""By platform, where only sizes are wanted: trying out matmul kernels takes most of a compilation and hardly changes a size."""

PLANNED_LAYERS = 2
"""Layers of the model whose steps are compiled for their sizes. Those of 32 layers differ by kilobytes (8B shape, 8,192 tokens,
compiled for an H100: 843.13 MB of temporaries in both) and take twice as long to compile."""


def plan_memory(
    model: Decoder,
    params: dict,
    options: EngineConfig,
    limits: Limits,
    buckets: Buckets,
    device: Any,
    programs: ProgramCache | None = None,
    on_compiling: Callable[[], None] = lambda: None,
) -> MemoryPlan:
    """Decide the number of pages.

    On a GPU the largest buckets are compiled with a pool of one page to learn what a step needs (its temporary buffers don't depend
    on the pool). On a CPU memory is not carved up in advance: a share gives no more pages than the sequences could ever fill, and
    no more than CPU_POOL_BYTES unless one sequence needs more.

    Args:
        programs: where what was learnt is kept for the next start.
        on_compiling: called if nothing was, before anything is compiled.

    Raises:
        MemoryBudgetError: no page fits, or not one sequence of the session_len that was asked for.
    """
    on_cpu = device.platform == "cpu"
    one_page = page_bytes(
        model.config,
        quant_policy=options.quant_policy,
        page_size=limits.page_size,
        dtype_bytes=jnp.dtype(limits.dtype).itemsize,
    )
    state = jax.eval_shape(lambda: create_state(model.config, limits))
    weight_bytes, state_bytes = tree_bytes(params), tree_bytes(state)
    by_share = options.cache_max_entry_count < 1
    step_bytes = 0
    if by_share and not on_cpu:
        step_bytes = step_memory(
            model, params, options, limits, buckets, programs or ProgramCache(None), on_compiling=on_compiling
        )
    total = device_bytes(device)
    # Free memory of a CPU is read after the weights were loaded; a GPU's limit counts everything.
    taken = state_bytes + step_bytes + (0 if on_cpu else weight_bytes + MARGIN_BYTES)
    most = None
    if on_cpu:
        most = min(limits.table_width * limits.batch_size, max(limits.table_width, CPU_POOL_BYTES // one_page))
    pages = count_pages(
        options.cache_max_entry_count,
        free_bytes=total - taken,
        page_bytes=one_page,
        least=limits.table_width if options.session_len else 1,
        most=most,
        what=f"weights {weight_bytes / 2**30:.2f} GiB, step buffers {step_bytes / 2**30:.2f} GiB of {total / 2**30:.2f} GiB",
    )
    return MemoryPlan(weight_bytes, step_bytes, state_bytes, one_page, pages, limits.page_size, total)


def step_memory(
    model: Decoder,
    params: dict,
    options: EngineConfig,
    limits: Limits,
    buckets: Buckets,
    programs: ProgramCache,
    on_compiling: Callable[[], None] = lambda: None,
) -> int:
    """Most bytes that a step needs for itself: temporaries, results that alias no input, code; and the scores that are kept.

    Looked up in a model of few layers: the others use the same buffers again.
    """
    few = ProgramSet.of(
        *_with_few_layers(model, params), options, limits, buckets, num_pages=1, platform=jax.default_backend()
    )
    models = [few[bucket] for bucket in buckets.largest]
    samplers = [few[extent, max(few.scores)] for extent in (Extent.FILTER, Extent.ALL)]

    def compute() -> int:
        on_compiling()
        lowered = [(program.lower(), program.compiler_options) for program in models + samplers]
        quick = QUICK_OPTIONS.get(jax.default_backend(), {})
        with ThreadPoolExecutor() as pool:
            compiled = list(pool.map(lambda each: each[0].compile(compiler_options=each[1] | quick), lowered))
        own = [_own_bytes(program) for program in compiled]
        # A step's model may start before the sampler of the one before it has given back what it used.
        return max(own[: len(models)]) + max(own[len(models) :])

    return programs.number(models + samplers, compute) + tree_bytes(few.scores)


def _with_few_layers(model: Decoder, params: dict) -> tuple[Decoder, dict]:
    """The first PLANNED_LAYERS alone, for shapes."""
    config = model.config
    layers = min(PLANNED_LAYERS, config.num_layers)

    def first(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((layers, *leaf.shape[1:]), leaf.dtype)

    few = replace(config, num_layers=layers, sliding_windows=config.sliding_windows[:layers])
    return model.clone(config=few), params | {"layers": jax.tree.map(first, params["layers"])}


def _own_bytes(program: jax.stages.Compiled) -> int:
    analysis = program.memory_analysis()
    if analysis is None:
        raise MemoryBudgetError(
            "this backend does not tell what a step needs; set cache_max_entry_count to a number of pages"
        )
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.temp_size_in_bytes + results + analysis.generated_code_size_in_bytes
