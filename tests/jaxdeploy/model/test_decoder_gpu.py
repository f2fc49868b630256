"""The decoder with the GPU's kernels against the same decoder on the CPU, which has none: a prompt, then a token of each row."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.model.decoder import Decoder, next_logits, random_parameters, run_layers
from jaxdeploy.model.inputs import ModelInputs
from jaxdeploy.weights.tiled_tensor import tile_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]
PAGE, NUM_PAGES, VOCABULARY = 16, 40, 512
PROMPTS = (5, 150, 33)
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 1024, "dtype": "bfloat16",
}  # fmt: skip
AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}


def steps() -> tuple[ModelInputs, ModelInputs]:
    """A prefill of ragged rows with some padding, and a decode step of the same rows and one that is empty."""
    rng = np.random.default_rng(0)
    counts = -(-(np.array(PROMPTS) + 1) // PAGE)
    table = np.zeros((len(PROMPTS) + 1, counts.max()), np.int32)
    ids = rng.permutation(NUM_PAGES)
    for row, count in enumerate(counts):
        table[row, :count], ids = ids[:count], ids[count:]
    total, padding = sum(PROMPTS), 7
    ends = np.cumsum(PROMPTS)

    def ints(*parts) -> np.ndarray:
        return np.concatenate(parts).astype(np.int32)

    prefill = ModelInputs(
        tokens=ints(rng.integers(0, VOCABULARY, total), np.zeros(padding)),
        positions=ints(*(np.arange(n) for n in PROMPTS), np.zeros(padding)),
        rows=ints(np.repeat(np.arange(len(PROMPTS)), PROMPTS), np.zeros(padding)),
        query_start=ints([0], ends, [total]),
        context_lens=ints(PROMPTS, [0]),
        rope_lengths=np.full(len(PROMPTS) + 1, 1024, np.int32),
        block_table=table,
    )
    rows = len(PROMPTS)
    decode = ModelInputs(
        tokens=ints(rng.integers(0, VOCABULARY, rows), [0]),
        positions=ints(PROMPTS, [0]),
        rows=np.arange(rows + 1, dtype=np.int32),
        query_start=ints(np.arange(rows + 1), [rows]),
        context_lens=ints(np.array(PROMPTS) + 1, [0]),
        rope_lengths=np.full(rows + 1, 1024, np.int32),
        block_table=table,
        decode=True,
    )
    return prefill, decode


def logits_on(device, config: ModelConfig, params: dict, quant_policy: int) -> list[np.ndarray]:
    decoder = Decoder(config, "bfloat16")
    create = partial(KVPages.create, config, NUM_PAGES, page_size=PAGE, quant_policy=quant_policy, dtype="bfloat16")
    pages = jax.device_put(create(), device)
    found = []
    for inputs in steps():
        hidden, pages = jax.jit(partial(run_layers, decoder))(params, jax.device_put(inputs, device), pages)
        rows = len(PROMPTS)
        places = np.arange(rows) if inputs.decode else np.cumsum(PROMPTS) - 1
        found.append(np.asarray(jax.jit(partial(next_logits, decoder))(params, hidden[jnp.asarray(places)])))
    return found


class Case(NamedTuple):
    """A model and its cache."""

    quantization: dict | None
    quant_policy: int
    head_dim: int

    def __str__(self) -> str:
        return f"{'int4' if self.quantization else 'bf16'}-kv{self.quant_policy or 16}-{self.head_dim}"


CASES = [
    Case(quantization, policy, head_dim)
    for quantization in (None, AWQ)
    for policy in (0, 8, 4)
    for head_dim in (64, 128)
]


def both(case: Case) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The logits of each step on the CPU and on the GPU."""
    config = LLAMA | {"head_dim": case.head_dim}
    config = ModelConfig.from_hf(config | ({"quantization_config": case.quantization} if case.quantization else {}))
    cpu, gpu = jax.devices("cpu")[0], jax.devices()[0]
    params = random_parameters(config, "bfloat16", seed=3)
    on_cpu = jax.device_put(params, cpu)
    on_gpu = tile_weights(jax.device_put(params, gpu)) if case.quantization else jax.device_put(params, gpu)
    with jax.default_device(cpu):
        expected = logits_on(cpu, config, on_cpu, case.quant_policy)
    return expected, logits_on(gpu, config, on_gpu, case.quant_policy)


@pytest.fixture(scope="module")
def logits() -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Of every case: compiling takes most of the time, and threads do it side by side."""
    with ThreadPoolExecutor(len(CASES)) as threads:
        jobs = [threads.submit(both, case) for case in CASES]
        return {str(case): job.result() for case, job in zip(CASES, jobs, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_and_references_make_the_same_logits(case, logits):
    for b, a in zip(*logits[str(case)], strict=True):
        assert np.isfinite(a).all()
        # Both round to bfloat16 after every step, in different orders.
        assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(b)
