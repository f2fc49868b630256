"""The main job on a real model: SmolLM2-135M-Instruct, embedded as a GGUF file."""

import pydoc_data.topics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.plain_decoder import plain_logits

from jaxdeploy import EngineConfig, GenerationConfig, pipeline
from jaxdeploy.demo import demo_model_path
from jaxdeploy.lite.perplexity import evaluate_perplexity

pytestmark = pytest.mark.demo

PROMPTS = (
    "What is the capital of France?",
    "Name three colours.",
    "Hi",
    "Write one sentence about the sea.",
    "Translate to Spanish: Good morning, my friend.",
    "List the planets of the solar system in order from the sun.",
    "What is 12 + 30?",
    "Who wrote Hamlet?",
    "Explain in a few words what a compiler does, so that a child could understand it.",
    "Finish the sentence: The quick brown fox",
    "What day comes after Monday?",
    "Give me a synonym of the word happy.",
    "Summarize this: " + "The river was wide and slow, and the boats went by all day long. " * 8,
    "Is water wet?",
    "Write a haiku about snow.",
    "Spell the word engine.",
    "How many legs does a spider have?",
    "What colour is the sky on a clear day? Answer with a single word.",
    "Repeat after me: one two three four five",
    "Why?",
)


def test_answers_with_paris_on_the_command_line(tmp_path):
    command = [sys.executable, "-m", "jaxdeploy", "chat", "--prompt", "What is the capital of France?"]
    command += ["--compile-cache", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "The capital of France is Paris.\n"
    assert "pages" in done.stderr, "the start-up line tells what the cache holds"


def test_twenty_prompts_in_one_ragged_batch_equal_full_recompute():
    """Prefill chunks, preemption and prefixes that don't fill a page change no token of a greedy answer, fp32."""
    tokens = 24
    options = EngineConfig(
        dtype="float32",
        session_len=512,
        max_batch_size=20,
        cache_block_seq_len=16,
        cache_max_entry_count=40,
        max_prefill_token_num=128,
    )
    with pipeline(None, options) as pipe:
        answers = pipe(PROMPTS, GenerationConfig(max_new_tokens=tokens, ignore_eos=True))
        assert pipe.engine.scheduler.preemptions > 0, "the pool was meant to be too small for all"
        prompts = [pipe.encode_prompt(prompt, do_preprocess=True) for prompt in PROMPTS]
        params, config = pipe.engine.executor.params, pipe.model_config
    assert max(map(len, prompts)) > options.max_prefill_token_num, "one prompt was meant to need several chunks"
    assert any(len(ids) % options.cache_block_seq_len for ids in prompts)
    longest = max(map(len, prompts)) + tokens
    score = jax.jit(lambda params, ids: jnp.argmax(plain_logits(config, params, ids, 512), axis=-1))
    for ids, answer in zip(prompts, answers, strict=True):
        whole = ids + answer.token_ids
        best = np.asarray(score(params, jnp.asarray(whole + [0] * (longest - len(whole)), jnp.int32)))
        # If each token is the likeliest one after those before it, a greedy loop without a cache makes the same answer.
        assert answer.token_ids == best[len(ids) - 1 : len(whole) - 1].tolist()


def test_perplexity_of_quantized_caches():
    """On Python's own help pages (PSF licence): int8 within 0.5 % of the plain cache, int4 near it, and only by its rotation."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics))[:6000]
    found = {
        (policy, rotation): evaluate_perplexity(
            demo_model_path(),
            text,
            EngineConfig(quant_policy=policy, kv_rotation=rotation),
            window=512,
            max_tokens=1024,
        ).perplexity
        for policy, rotation in ((0, None), (8, None), (4, None), (4, False))
    }
    plain = found[0, None]
    assert 5 < plain < 40
    assert abs(found[8, None] / plain - 1) < 0.005
    assert abs(found[4, None] / plain - 1) < 0.05, "2 % on the whole text; two windows tell it less exactly"
    assert 1.05 < found[4, False] / plain < 1.5
