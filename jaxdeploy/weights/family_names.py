"""The names that a family's checkpoints have for the modules of Hugging Face's Llama, and where their rows lie."""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from jaxdeploy.config.model import ModelConfig

LAYER_PREFIX = "model.layers."
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
LINEAR_MODULES = (*QKV, "self_attn.o_proj", *GATE_UP, "mlp.down_proj")
"""The linear modules of a layer, the ones that can be int4."""

_INTERNLM2_GLOBAL = {
    "model.embed_tokens": "model.tok_embeddings",
    "model.norm": "model.norm",
    "lm_head": "output",
}
_INTERNLM2_LAYER = {
    "self_attn.q_proj": "attention.wqkv",
    "self_attn.k_proj": "attention.wqkv",
    "self_attn.v_proj": "attention.wqkv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_LAYER_NAME = re.compile(r"(model\.layers\.[^.]+\.)(.+)")


@dataclass(frozen=True, slots=True)
class CheckpointModule:
    """A module as the checkpoint has it, and what of a parameter it holds.

    Attributes:
        name: its own name there.
        outputs: number of its outputs.
        order: row n of the parameter is the module's row ``order[n]``; None if the rows are in order.
    """

    name: str
    outputs: int
    order: Int[np.ndarray, " outputs"] | None = None

    @property
    def inverse(self) -> Int[np.ndarray, " outputs"] | None:
        """Row n of the module is the parameter's row ``inverse[n]``; None if the rows are in order."""
        return None if self.order is None else np.argsort(self.order)


def own_name(family: str, module: str) -> str:
    """The checkpoint's name of the module that Hugging Face's Llama calls ``module``."""
    if family != "internlm2":
        return module
    layer = _LAYER_NAME.fullmatch(module)
    if layer is None:
        return _INTERNLM2_GLOBAL.get(module, module)
    return layer[1] + _INTERNLM2_LAYER.get(layer[2], layer[2])


def checkpoint_modules(config: ModelConfig, modules: tuple[str, ...], outputs: int) -> tuple[CheckpointModule, ...]:
    """The checkpoint's modules whose outputs, one after the other, are those of a parameter.

    Args:
        config: tells the family and the sizes.
        modules: the parameter's modules as Hugging Face's Llama names them, joined along the outputs.
        outputs: outputs of the parameter.

    Raises:
        ValueError: a combination of modules that no parameter has.
    """
    if len(modules) == 1:
        return (CheckpointModule(own_name(config.family, modules[0]), outputs),)
    kinds = tuple(module.removeprefix(LAYER_PREFIX).partition(".")[2] for module in modules)
    names = [own_name(config.family, module) for module in modules]
    if kinds == GATE_UP:
        return tuple(CheckpointModule(name, config.intermediate_size) for name in names)
    if kinds != QKV:
        raise ValueError(f"{modules=} can't be joined; expected q, k, v or gate, up")
    if len(set(names)) == 1:
        return (CheckpointModule(names[0], outputs, packed_qkv_order(config)),)
    sizes = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    return tuple(CheckpointModule(name, size * config.head_dim) for name, size in zip(names, sizes, strict=True))


def packed_qkv_order(config: ModelConfig) -> Int[np.ndarray, " outputs"]:
    """Rows of InternLM2's ``wqkv`` in the order q, k, v.

    ``wqkv`` is ``[K, N / K + 2, H]`` rows: for each KV head its query heads, then its key, then its value.
    """
    group = config.num_heads // config.num_kv_heads
    rows = np.arange(config.num_kv_heads * (group + 2) * config.head_dim)
    rows = rows.reshape(config.num_kv_heads, group + 2, config.head_dim)
    return np.concatenate([rows[:, :group].ravel(), rows[:, group].ravel(), rows[:, group + 1].ravel()])
