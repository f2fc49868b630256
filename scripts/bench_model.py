"""Load time, prefill and decode speed of a model of real shape with random weights; logits against transformers.

    python scripts/bench_model.py --shape llama-3-8b --shape internlm2.5-1.8b --batch 1 --batch 16 --batch 64 --compare

Writes a random checkpoint of each shape to a scratch folder, loads it as any checkpoint is loaded, and runs the engine: prefill of
``--prompt`` tokens, then ``--new`` greedy tokens at each batch size. ``--compare`` also runs transformers (torch) on the same GPU
with the same weights and prints the relative error of the logits of one prompt; the tolerance is bf16's, not checked here.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxdeploy import runtime  # noqa: F401  sets XLA's environment before jax starts

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from engine_bench.shapes import SHAPES, SilentTokenizer

from jaxdeploy import functional
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.request import Request
from jaxdeploy.model.decoder import Decoder, random_parameters
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.hf_export import hf_tensors
from jaxdeploy.weights.loader import load_parameters
from jaxdeploy.weights.safetensors_writer import write_safetensors


def write_random_checkpoint(config: dict, folder: Path) -> None:
    """A checkpoint with random weights of this config.json."""
    model = ModelConfig.from_hf(config)
    params = random_parameters(model, model.dtype)
    write_safetensors(folder, hf_tensors(params, model, None))
    (folder / "config.json").write_text(json.dumps(config))


def measure_engine(config: ModelConfig, params: dict, args: argparse.Namespace, batch: int) -> dict[str, float]:
    """Tokens per second of one batch size: all prompts at once, then decode alone (first to last token of the slowest answer)."""
    options = EngineConfig(
        dtype=args.dtype, max_batch_size=batch, session_len=args.prompt + args.new, quant_policy=args.quant_policy
    )
    limits = Limits.resolve(options, config, platform=jax.devices()[0].platform)
    begun = time.perf_counter()
    engine = Engine(config, params, SilentTokenizer(config.vocab_size), options, limits)
    warm = time.perf_counter() - begun
    rng = np.random.RandomState(0)
    timings = []
    for _ in range(args.repeats):
        for row in range(batch):
            prompt = rng.randint(0, config.vocab_size, args.prompt).tolist()
            engine.submit(Request(str(row), prompt, GenerationConfig(max_new_tokens=args.new, ignore_eos=True)))
        begun = time.perf_counter()
        while engine.scheduler.waiting or any(sequence.prefilling for sequence in engine.scheduler.running):
            engine.step()
        prefilled = time.perf_counter()
        made = sum(sequence.made for sequence in engine.scheduler.running)
        while engine.has_work:
            engine.step()
        ended = time.perf_counter()
        timings.append((batch * args.prompt / (prefilled - begun), (batch * args.new - made) / (ended - prefilled)))
    prefill, decode = np.median(timings, axis=0)
    return {"batch": batch, "prefill tokens/s": prefill, "decode tokens/s": decode, "warm-up s": warm}


def compare_with_transformers(config: ModelConfig, params: dict, args: argparse.Namespace) -> float:
    """Relative error ||ours - theirs|| / ||theirs|| of the logits after a prompt; the reference runs in float32."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM

    # The mathematics of these families is Llama's; written under Llama's names the weights fit its model.
    as_llama = replace(config, family="llama")
    reference_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        tie_word_embeddings=config.tie_word_embeddings,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = {
        name: torch.from_numpy(np.array(array, np.float32)) for name, array in hf_tensors(params, as_llama, None)
    }
    model: Any = LlamaForCausalLM(reference_config)
    model.load_state_dict(weights, strict=False)
    model = model.to(device).eval()
    tokens = np.random.RandomState(1).randint(0, config.vocab_size, args.prompt)
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens[None]).to(device)).logits[0, -1].float().cpu().numpy()
    decoder = Decoder(config, args.dtype)
    cache = functional.new_cache(decoder, 1, args.prompt)
    ids, counts = jnp.asarray(tokens[None], jnp.int32), jnp.array([args.prompt], jnp.int32)
    ours, _ = functional.prefill(decoder, params, cache, ids, counts)
    return float(np.linalg.norm(np.asarray(ours[0]) - theirs) / np.linalg.norm(theirs))


def main() -> None:
    """Measure every shape and print a table; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="repeat for several; default: tiny")
    parser.add_argument("--batch", action="append", type=int, help="repeat for several; default: 1, 16, 64")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--quant-policy", type=int, default=0, choices=(0, 8, 4))
    parser.add_argument("--compare", action="store_true", help="logits against transformers (needs torch)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {version('jax')}, {args.dtype}, {args.prompt} tokens in, {args.new} out")
    report = []
    for shape in args.shape or ["tiny"]:
        with tempfile.TemporaryDirectory() as scratch:
            write_random_checkpoint(SHAPES[shape] | {"dtype": args.dtype}, Path(scratch))
            begun = time.perf_counter()
            checkpoint = open_checkpoint(scratch)
            params = jax.block_until_ready(load_parameters(checkpoint, args.dtype))
            load = time.perf_counter() - begun
            checkpoint.close()
        print(f"{shape}: loaded in {load:.2f} s (files in the page cache)")
        rows = [measure_engine(checkpoint.config, params, args, batch) for batch in args.batch or (1, 16, 64)]
        for row in rows:
            print("  " + ", ".join(f"{name} {value:,.1f}" for name, value in row.items()))
        error = compare_with_transformers(checkpoint.config, params, args) if args.compare else None
        if error is not None:
            print(f"  logits against transformers in float32: relative error {error:.2e}")
        report.append({"shape": shape, "load s": load, "rows": rows, "logits error": error})
    if args.json:
        args.json.write_text(
            json.dumps({"device": device.device_kind, "jax": version("jax"), "shapes": report}, indent=1)
        )


if __name__ == "__main__":
    main()
