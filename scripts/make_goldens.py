"""Writes the golden files that the tests of parity with Hugging Face transformers read.

Needs torch (CPU), transformers, safetensors and numpy, not jaxdeploy, so run it in an environment of its own:

    python -m venv goldens-env
    goldens-env/bin/pip install torch transformers safetensors numpy
    goldens-env/bin/python scripts/make_goldens.py            # rewrites tests/goldens
    goldens-env/bin/python scripts/make_goldens.py --check    # compares only

For each case of tests/support/tiny_checkpoints.py: ``tests/goldens/<case>.npz`` with

    tokens   int32 [T]       prompt, then the tokens that decode steps are fed with
    prefill  int32 []        length of the prompt; positions prefill.. are the decode steps
    logits   float32 [T, V]  of every position, eager attention, float32

All logits come from ONE forward pass over T tokens, so dynamic NTK and longrope use the length that the request
reaches. Decoding token by token with transformers' cache is compared with it here.

transformers has no InternLM2 and InternLM3 classes. Their maths is Llama's: InternLM2 packs q, k and v of each KV group
into ``wqkv`` and renames the rest, InternLM3 splits the flags of its biases. They run as a Llama model that holds the
same weights, with zeros for the biases that they lack.

``tests/goldens/rope.npz``: inverse frequencies and attention factor of published RoPE settings
(tests/support/rope_configs.py).
"""

import argparse
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.rope_configs import ROPE_CASES  # noqa: E402  # pyright: ignore[reportMissingImports]
from support.tiny_checkpoints import CASES, head_dim, tensors  # noqa: E402  # pyright: ignore[reportMissingImports]

PREFILL, DECODE = 29, 16
CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
# The frequencies of a request change during transformers' own decoding there (29 tokens within, 45 beyond).
LENGTH_CHANGES_ROPE = {"longrope_long"}


def as_llama(config: dict[str, Any], weights: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """An InternLM2 or InternLM3 checkpoint as the Llama checkpoint with the same function."""
    packed = config["model_type"] == "internlm2"
    config = {**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    config |= {"attention_bias": True, "mlp_bias": True}
    if packed:
        weights = unpack_internlm2(config, weights)
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        weights.setdefault(name.replace(".weight", ".bias"), np.zeros(weights[name].shape[0], np.float32))
    return config, weights


def unpack_internlm2(config: dict[str, Any], weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """InternLM2's names to Llama's; the rows of wqkv are, for each KV head, its query heads, then k, then v."""
    kv_heads, h = config["num_key_value_heads"], head_dim(config)
    renamed = {
        "model.tok_embeddings": "model.embed_tokens",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    out = {}
    for name, value in weights.items():
        if "wqkv" in name:
            groups = value.reshape(kv_heads, -1, h, *value.shape[1:])
            for part, rows in (("q", groups[:, :-2]), ("k", groups[:, -2]), ("v", groups[:, -1])):
                out[name.replace("attention.wqkv", f"self_attn.{part}_proj")] = rows.reshape(-1, *value.shape[1:])
            continue
        for theirs, llama in renamed.items():
            name = name.replace(theirs, llama)
        out["lm_head.weight" if name == "output.weight" else name] = value
    return out


def build_model(config: dict[str, Any], weights: dict[str, np.ndarray]) -> Any:
    """The transformers model in float32 with eager attention; every tensor must find its place."""
    if config["model_type"].startswith("internlm"):
        config, weights = as_llama(config, weights)
    config_class, model_class = CLASSES[config["model_type"]]
    parsed = config_class.from_dict(config)
    parsed._attn_implementation = "eager"
    model = model_class(parsed).to(torch.float32).eval()
    state = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()}
    if config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


def case_tokens(case: str) -> np.ndarray:
    return (
        np.random.RandomState(zlib.crc32(case.encode()))
        .randint(3, CASES[case]["vocab_size"], PREFILL + DECODE)
        .astype(np.int32)
    )


@torch.no_grad()
def forward(model: Any, tokens: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(tokens)[None].long(), use_cache=False).logits[0].numpy()


@torch.no_grad()
def incremental(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Prefill, then one token a step, with transformers' own cache."""
    ids = torch.from_numpy(tokens)[None].long()
    out = model(ids[:, :PREFILL], use_cache=True)
    logits = [out.logits[0]]
    for step in range(PREFILL, len(tokens)):
        out = model(ids[:, step : step + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
    return torch.cat(logits).numpy()


def without_positions_feature(config: dict[str, Any]) -> dict[str, Any] | None:
    """The case without its RoPE scaling or window; None if it has neither."""
    windowed = config["model_type"] == "mistral" or config.get("use_sliding_window")
    section = config.get("rope_scaling") or config.get("rope_parameters")
    if not windowed and not section:
        return None
    plain = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_parameters")}
    plain |= {"sliding_window": None, "use_sliding_window": False} if windowed else {}
    if section and "rope_theta" in section:
        plain["rope_theta"] = section["rope_theta"]
    return plain


def make_case(case: str) -> dict[str, np.ndarray]:
    tokens, weights = case_tokens(case), tensors(case)
    model = build_model(CASES[case], dict(weights))
    logits = forward(model, tokens)
    if case not in LENGTH_CHANGES_ROPE:
        stepwise = incremental(model, tokens)
        error = np.abs(stepwise - logits).max() / np.abs(logits).max()
        assert error < 1e-5, f"{case}: decoding token by token differs from one pass by {error:.1e}"
    plain = without_positions_feature(CASES[case])
    effect = 0.0
    if plain is not None:
        effect = float(np.abs(forward(build_model(plain, dict(weights)), tokens) - logits).max())
        # Below its length dynamic NTK is plain RoPE, which is what that case is there to show.
        assert (effect < 1e-5) if case == "dynamic_within" else (effect > 1e-2), f"{case}: effect {effect:.1e}"
    print(f"{case:16s} logits std {logits.std():.2f}; without scaling or window {effect:.2f} off")
    return {"tokens": tokens, "prefill": np.asarray(PREFILL, np.int32), "logits": logits.astype(np.float32)}


def make_rope() -> dict[str, np.ndarray]:
    out = {}
    for name, (keys, dim, length) in ROPE_CASES.items():
        sizes = {"hidden_size": 2 * dim, "num_attention_heads": 2, "head_dim": dim, "rope_theta": 10000.0}
        config: Any = LlamaConfig.from_dict({**sizes, **keys})
        kind = config.rope_parameters["rope_type"]
        if kind == "default":
            inv_freq, attention_factor = LlamaRotaryEmbedding(config).inv_freq, 1.0
        else:
            inv_freq, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
        out[name], out[f"{name}.attention_factor"] = inv_freq.numpy(), np.asarray(attention_factor, np.float64)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "tests" / "goldens", help="folder of the golden files")
    parser.add_argument("--case", nargs="+", choices=[*CASES, "rope"], default=[*CASES, "rope"], help="only these")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a stored file differs")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for case in args.case:
        golden, path = make_rope() if case == "rope" else make_case(case), args.output / f"{case}.npz"
        if not args.check:
            np.savez_compressed(path, **golden)  # pyright: ignore[reportArgumentType]
            continue
        stored = np.load(path)
        for key, value in golden.items():
            np.testing.assert_allclose(value, stored[key], rtol=1e-5, atol=1e-5, err_msg=f"{path.name}: {key}")


if __name__ == "__main__":
    main()
