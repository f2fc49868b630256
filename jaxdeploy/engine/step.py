"""The compiled programs of a step, on state that never leaves the device: the model with the likeliest tokens, and the sampler.

They are apart because they vary apart: the model by bucket, the sampler by number of rows and by what the rows ask for. Rows that
all want the likeliest token need no sampler.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.model.decoder import Decoder, next_logits, run_layers
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.sampler import Sampled, likeliest, sample
from jaxdeploy.sampling.slots import SlotState

COMPILER_OPTIONS: dict[str, dict[str, str | bool | int | float]] = {
    "gpu": {"xla_disable_hlo_passes": "rematerialization"}
}
"""By platform. The cache takes what memory steps leave, and XLA, seeing little left, would compute small things anew in every layer
to save bytes (batch 16 of an 8B model: cos and sin 32 times, two kernels more a layer)."""
DENSE_OPTIONS: dict[str, dict[str, str | bool | int | float]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}
"""By platform, for programs with dense matrices in every layer: dense weights, or the rotation of an int4 cache in prefill. cuBLAS
takes a layer of a stack as a view and is tried out once for all layers; XLA's own matmuls are a kernel for each layer, each tried
out in dozens of variants while the engine starts (8B, int4 cache, H200: 43 s of compiling where a bfloat16 cache took 13)."""
LONG_STEP_OPTIONS: dict[str, dict[str, str | bool | int | float]] = {"gpu": {"xla_gpu_graph_min_graph_size": 2**30}}
"""By platform, for steps of LONG_STEP_TOKENS or more: no CUDA graph. Their kernels are long enough to hide the launch of the next
one, while a GPU that is given a graph waits until the host has put all of it together (8B, 2,048 tokens, H200: 50.8 to 50.3 ms)."""
LONG_STEP_TOKENS = 512
LEAST_DENSE_ROWS = 8
"""Rows of the smallest decode step on a GPU where weights are dense: cuBLAS pads fewer, with a kernel before each matmul."""


class Scores(NamedTuple):
    """What the model hands to the sampler.

    One of each number of rows is kept and written again and again: XLA launches a step as one CUDA graph, and each address that
    moved since the last launch costs the host an update of every kernel that uses it.

    Attributes:
        logits: of the next token at each place that samples.
        rows: slot, whether the token is kept for the next step, and tokens made before; see ``StepInputs.sampler_rows``.
    """

    logits: Array  # float32 [R, V]
    rows: Array  # int32 [3, R]

    @classmethod
    def create(cls, rows: int, vocabulary: int) -> "Scores":
        """Room for ``rows`` places."""
        return cls(jnp.zeros((rows, vocabulary), jnp.float32), jnp.zeros((3, rows), jnp.int32))


@dataclass(frozen=True)
class Program:
    """Something to compile.

    Attributes:
        name: what it is, with all that decides what ``function`` does and does not show in its arguments.
        arguments: arrays or ShapeDtypeStructs.
        donated: which of them the results are written over.
        results: a tree of the results' structure; its leaves mean nothing.
        compiler_options: XLA's.
    """

    name: str
    function: Callable
    arguments: tuple
    donated: tuple[int, ...]
    results: Any
    compiler_options: dict[str, str | bool | int | float] = field(default_factory=dict)

    def lower(self) -> jax.stages.Lowered:
        """Trace. The compiled result can be called, can't be re-compiled, and tells what memory it needs (``memory_analysis``)."""
        # Scores that come in are not read: they are where those that go out are written.
        return jax.jit(self.function, donate_argnums=self.donated, keep_unused=True).lower(*self.arguments)


def run_model(
    model: Decoder,
    layout: StepLayout,
    params: dict,
    pages: KVPages,
    scores: Scores,
    last_token: Int32[Array, " S"],
    packed: Int32[Array, " size"],
) -> tuple[KVPages, Scores, Int32[Array, " S"], Int32[Array, " size"], Int32[Array, " R"]]:
    """Feed the tokens of a packed plan.

    Returns:
        The pages; the scores in the place of those handed in; ``last_token`` with the likeliest tokens where that is wanted, which
        a sampler that runs next replaces; the plan of the step after this one (``StepLayout.advance``); the likeliest tokens.
    """
    del scores
    inputs = layout.unpack(packed)
    token_slots = jnp.take(inputs.slots, inputs.model.rows)
    fed = replace(inputs.model, tokens=jnp.where(inputs.from_device, last_token[token_slots], inputs.model.tokens))
    hidden, pages = run_layers(model, params, fed, pages)
    # A decode step samples at one place a row; the sampler may have room for more.
    bucket = layout.bucket
    places = bucket.rows if bucket.decode else bucket.sampler_rows
    picks = inputs.picks[:places]
    if places == 1 and not bucket.decode:
        # Without XLA's own matmuls (DENSE_OPTIONS) a product with one vector widens the whole output matrix to float32 in memory.
        picks = jnp.repeat(picks, 2)
    logits = next_logits(model, params, hidden[picks])[:places]
    scores = Scores(jnp.pad(logits, ((0, bucket.sampler_rows - places), (0, 0))), inputs.sampler_rows)
    tokens = jnp.pad(likeliest(logits), (0, bucket.sampler_rows - places))
    made = pages, scores, _keep(last_token, scores, tokens)[0], tokens
    # Once all else is there nobody reads the plan any more, and it can be advanced in its place.
    (pages, scores, last_token, tokens), packed = jax.lax.optimization_barrier((made, packed))
    return pages, scores, last_token, layout.advance(packed), tokens


def run_sampler(extent: Extent, state: SlotState, scores: Scores) -> tuple[SlotState, Sampled]:
    """Sample at each place and keep the token for the next step where that is wanted."""
    sampled = sample(scores.logits, state, scores.rows[0], scores.rows[2], extent=extent)
    last_token, kept = _keep(state.last_token, scores, sampled.tokens)
    state = replace(state, last_token=last_token)
    if extent is Extent.ALL:
        keeps = scores.rows[1] == 1
        state = state.count(scores.rows[0], kept, jnp.zeros_like(keeps), keeps)
    return state, sampled


def _keep(last_token: Array, scores: Scores, tokens: Array) -> tuple[Array, Array]:
    """``last_token`` with the tokens of places that keep theirs, and what each place's slot holds now."""
    slots, keeps = scores.rows[0], scores.rows[1] == 1
    kept = jnp.where(keeps, tokens, last_token[slots])
    return last_token.at[slots].set(kept), kept


def model_program(
    model: Decoder,
    layout: StepLayout,
    params: dict,
    pages: KVPages,
    scores: Scores,
    last_token: Array | jax.ShapeDtypeStruct,
    *,
    platform: str | None = None,
) -> Program:
    """The model of one bucket; all arguments but the parameters are donated.

    Args:
        platform: "gpu" or "cpu"; None is that of this process.
    """
    platform = platform or jax.default_backend()
    if platform == "gpu":
        # Layers are written out. In a loop the host is slower than a layer of few tokens: measured on an H100, jax 0.11.2, one int4
        # matmul of 5 us for each layer, 15 us of host time an iteration of fori_loop, 1.6 us a layer written out. And from a loop's
        # stack XLA copies each layer's dense weights, and computes anew what all layers have in common, for any number of tokens
        # (seen in programs compiled for an H100). Tracing takes no longer, compiling a second or two.
        model = model.clone(unroll=model.config.num_layers)

    def step(params, pages, scores, last_token, packed):
        return run_model(model, layout, params, pages, scores, last_token, packed)

    packed = jax.ShapeDtypeStruct((layout.size,), jnp.int32)
    options = COMPILER_OPTIONS.get(platform, {})
    if model.config.quantization is None or not layout.bucket.decode:
        options = options | DENSE_OPTIONS.get(platform, {})
    if layout.bucket.tokens >= LONG_STEP_TOKENS:
        options = options | LONG_STEP_OPTIONS.get(platform, {})
    return Program(
        f"model {layout} {model.dtype} unroll={model.unroll} {model.config}",
        step,
        (params, pages, scores, last_token, packed),
        donated=(1, 2, 3, 4),
        results=(pages, scores, "last_token", "packed", "tokens"),
        compiler_options=options,
    )


def sampler_program(extent: Extent, state: SlotState, scores: Scores, *, platform: str | None = None) -> Program:
    """The sampler of one number of rows.

    The program of the last extent takes (state, donated; scores) and returns state and ``Sampled``. Those of the others change
    nothing of the state but its tokens and report nothing: they take (last_token, donated; the state without it; scores) and return
    ``last_token`` and the tokens alone.

    Args:
        platform: see ``model_program``.
    """

    def whole(state, scores):
        return run_sampler(extent, state, scores)

    def tokens_alone(last_token, state, scores):
        state, sampled = run_sampler(extent, replace(state, last_token=last_token), scores)
        return state.last_token, sampled.tokens

    options = COMPILER_OPTIONS.get(platform or jax.default_backend(), {})
    if extent is Extent.ALL:
        results = state, Sampled._make(Sampled._fields)
        return Program(f"sampler {extent}", whole, (state, scores), (0,), results, options)
    arguments = state.last_token, replace(state, last_token=None), scores
    return Program(f"sampler {extent}", tokens_alone, arguments, (0,), ("last_token", "tokens"), options)
