"""Everything that a GPU will run is lowered for CUDA here, at its real size, without a GPU and without memory."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax.core import meta

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.engine.buckets import Bucket
from jaxdeploy.engine.step import Scores, run_model, run_sampler
from jaxdeploy.model.decoder import Decoder, describe_parameters
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.slots import SlotState
from jaxdeploy.weights.tiled_tensor import tile_weights
from pallas_kernels.head_basis.api import rope_change_basis, turn_heads
from pallas_kernels.int4_matmul import cases as matmul_cases
from pallas_kernels.int4_matmul.api import int4_matmul, int4_matmul_tiles
from pallas_kernels.int4_matmul.tiles import groups_per_tile, padded
from pallas_kernels.kv_write.api import kv_write, rope_kv_write
from pallas_kernels.kv_write.reference import Pools
from pallas_kernels.paged_attention import cases as attention_cases
from pallas_kernels.paged_attention.api import paged_decode, paged_prefill
from pallas_kernels.paged_attention.reference import Pages

LAYERS, PAGES, WIDTH, ROWS, TOKENS = 32, 512, 128, 8, 256

struct = jax.ShapeDtypeStruct


def ints(*shape: int) -> jax.ShapeDtypeStruct:
    return struct(shape, jnp.int32)


def lower_for_cuda(function, *arguments, donate: tuple[int, ...] = ()) -> str:
    """The module's text; raises if anything in it has no lowering for CUDA."""
    traced = jax.jit(function, donate_argnums=donate, keep_unused=True).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def case_id(case) -> str:
    name = getattr(case, "name", None) or f"int{case.bits}"
    return f"{case.model}-{name}"


@pytest.mark.parametrize("rows", [1, 64, 4096])
@pytest.mark.parametrize("case", matmul_cases.CASES, ids=case_id)
def test_int4_matmul(case, rows):
    groups = (LAYERS, case.k // case.group_size, case.n)
    text = lower_for_cuda(
        partial(int4_matmul, group_size=case.group_size),
        struct((rows, case.k), jnp.bfloat16),
        struct((LAYERS, case.n, case.k // 2), jnp.uint8),
        struct(groups, jnp.bfloat16),
        struct(groups, jnp.uint8),
        ints(),
    )
    assert f"-> (tensor<{rows}x{case.n}xbf16>" in text


@pytest.mark.parametrize("rows", [5, 17, 200, 2048])
@pytest.mark.parametrize("case", matmul_cases.CASES, ids=case_id)
def test_int4_matmul_tiles(case, rows):
    outputs, inputs = padded(case.n, case.k)
    text = lower_for_cuda(
        partial(int4_matmul_tiles, outputs=case.n, group_size=case.group_size, gated=case.name == "gate_up"),
        struct((rows, case.k), jnp.bfloat16),
        struct((LAYERS, outputs // 16, inputs // 128, 256), jnp.int32),
        struct((LAYERS, outputs // 16, inputs // 128, groups_per_tile(case.group_size), 16), jnp.int32),
        ints(),
    )
    width = case.n // 2 if case.name == "gate_up" else case.n
    assert f"-> (tensor<{rows}x{width}xbf16>" in text
    assert "mosaic_gpu" in text, "the kernel, not the reference"


def pool(case) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct | None]:
    lead = (LAYERS, PAGES, case.kv_heads, case.page_size)
    if case.bits == 16:
        return struct((*lead, case.head_dim), jnp.bfloat16), None
    return struct((*lead, case.head_dim * case.bits // 8), jnp.uint8), struct((*lead, 2), jnp.float16)


@pytest.mark.parametrize("case", attention_cases.CASES, ids=case_id)
def test_paged_attention(case):
    def decode(q, k, v, *arguments):
        return paged_decode(q, Pages(*k, case.bits), Pages(*v, case.bits), *arguments, scale=case.head_dim**-0.5)

    def prefill(q, k, v, *arguments):
        return paged_prefill(q, Pages(*k, case.bits), Pages(*v, case.bits), *arguments, scale=case.head_dim**-0.5)

    pools, table, lens, window = (pool(case), pool(case)), ints(ROWS, WIDTH), ints(ROWS), ints()
    q = struct((ROWS, case.heads, case.head_dim), jnp.bfloat16)
    text = lower_for_cuda(decode, q, *pools, ints(), table, lens, window)
    assert f"-> (tensor<{ROWS}x{case.heads}x{case.head_dim}xbf16>" in text
    q = struct((TOKENS, case.heads, case.head_dim), jnp.bfloat16)
    text = lower_for_cuda(prefill, q, *pools, ints(), table, ints(ROWS + 1), lens, window)
    assert f"-> (tensor<{TOKENS}x{case.heads}x{case.head_dim}xbf16>" in text


@pytest.mark.parametrize("tokens", [1, TOKENS])
@pytest.mark.parametrize("case", attention_cases.CASES, ids=case_id)
def test_kv_write(case, tokens):
    values, pairs = pool(case)
    pools, places = Pools(values, values, pairs, pairs), (ints(), ints(tokens), ints(tokens))
    new = struct((tokens, case.kv_heads, case.head_dim), jnp.bfloat16)
    qkv = struct((tokens, case.heads + 2 * case.kv_heads, case.head_dim), jnp.bfloat16)
    angles = struct((tokens, case.head_dim // 2), jnp.float32)
    for text in (
        lower_for_cuda(partial(kv_write, bits=case.bits), pools, new, new, *places, donate=(0,)),
        lower_for_cuda(partial(rope_kv_write, bits=case.bits), pools, qkv, angles, angles, *places, donate=(0,)),
    ):
        assert text.count("@mosaic_gpu_v2") == 1, "one kernel, not the reference"
        assert text.count("tf.aliasing_output") == (2 if case.bits == 16 else 4), "pools are updated in place"
    assert f"-> (tensor<{tokens}x{case.heads}x{case.head_dim}xbf16>" in text, "with RoPE it returns the queries"


@pytest.mark.parametrize("tokens", [1, TOKENS])
@pytest.mark.parametrize("case", attention_cases.CASES, ids=case_id)
def test_head_basis(case, tokens):
    size = case.head_dim
    qkv = struct((tokens, case.heads + 2 * case.kv_heads, size), jnp.bfloat16)
    angles = struct((tokens, size // 2), jnp.float32)
    base = struct((LAYERS, case.kv_heads, size, size), jnp.bfloat16)
    matrix, out = struct((size, size), jnp.bfloat16), struct((tokens, case.heads, size), jnp.bfloat16)
    texts = [
        lower_for_cuda(partial(rope_change_basis, divisor=8.0), qkv, angles, angles, base, base, ints(), matrix),
        lower_for_cuda(partial(turn_heads, divisor=8.0), out, matrix),
    ]
    for text in texts:
        assert text.count("@mosaic_gpu_v2") == (1 if size in (64, 128) else 0), "the kernel, or the reference"
        assert f"-> (tensor<{tokens}x{case.heads}x{size}xbf16>" in text


LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}


@pytest.mark.parametrize("bucket", [Bucket(64, 64, True, 64), Bucket(1024, 48, False, 64)], ids=str)
@pytest.mark.parametrize(
    ("quantization", "quant_policy"), [(None, 0), (AWQ, 8), (AWQ, 4)], ids=["bf16", "int4-kv8", "int4-kv4"]
)
def test_step_of_llama_3_8b(quantization, quant_policy, bucket):
    config = ModelConfig.from_hf(
        LLAMA_3_8B if quantization is None else LLAMA_3_8B | {"quantization_config": quantization}
    )
    slots = 128
    params = jax.eval_shape(tile_weights, meta.unbox(describe_parameters(config, "bfloat16")))
    create = partial(KVPages.create, config, PAGES, quant_policy=quant_policy, dtype="bfloat16")
    pages, state = jax.eval_shape(create), jax.eval_shape(partial(SlotState.create, slots + 1, config.vocab_size))
    layout = StepLayout(bucket, table_width=WIDTH, padding_slot=slots)
    scores = jax.eval_shape(lambda: Scores.create(bucket.sampler_rows, config.vocab_size))
    step = partial(run_model, Decoder(config, "bfloat16"), layout)
    text = lower_for_cuda(step, params, pages, scores, state.last_token, ints(layout.size), donate=(1, 2, 3, 4))
    assert text.count("tf.aliasing_output") == len(jax.tree.leaves((pages, scores))) + 2, "updated in place"
    assert len(re.findall(r"\"stablehlo.scatter\"", text)) == 1, "that of the kept tokens: the kernel writes the cache"
    assert ("add_rms_norm_mosaic_gpu" in text) == bucket.decode, "of a prefill XLA fuses add and norm"


@pytest.mark.parametrize("bucket", [Bucket(64, 64, True, 64), Bucket(1024, 48, False, 64)], ids=str)
def test_step_of_llama_3_8b_with_a_rotated_cache(bucket):
    config = ModelConfig.from_hf(LLAMA_3_8B | {"quantization_config": AWQ}).with_rotation(foldable=True)
    params = jax.eval_shape(tile_weights, meta.unbox(describe_parameters(config, "bfloat16")))
    pages = jax.eval_shape(partial(KVPages.create, config, PAGES, quant_policy=4, dtype="bfloat16"))
    layout = StepLayout(bucket, table_width=WIDTH, padding_slot=128)
    scores = jax.eval_shape(lambda: Scores.create(bucket.sampler_rows, config.vocab_size))
    step = partial(run_model, Decoder(config, "bfloat16"), layout)
    text = lower_for_cuda(step, params, pages, scores, ints(129), ints(layout.size), donate=(1, 2))
    kernels = 2 if bucket.decode else 0  # q, k and v; the output. A prefill is a matter of matrix products
    assert text.count("head_basis_mosaic_gpu") == kernels


@pytest.mark.parametrize("extent", Extent)
def test_sampler_of_llama_3_8b(extent):
    state = jax.eval_shape(partial(SlotState.create, 129, 128256))
    scores = jax.eval_shape(lambda: Scores.create(64, 128256))
    text = lower_for_cuda(partial(run_sampler, extent), state, scores, donate=(0,))
    assert text.count("tf.aliasing_output") == len(jax.tree.leaves(state)), "the state is updated in place"
    branches = text.count("stablehlo.case")
    assert (branches > 0) == (extent is Extent.ALL), "a branch makes the host wait: only what is rare has any"
