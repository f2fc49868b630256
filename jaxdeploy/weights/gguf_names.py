"""GGUF's tensor names and the Hugging Face Llama names of the same tensors."""

import re

ROPE_FACTORS = "rope_freqs.weight"

_GLOBAL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK_NAME = re.compile(r"blk\.(\d+)\.(.+)")


def hf_name(gguf_name: str) -> str | None:
    """``blk.3.attn_q.weight`` to ``model.layers.3.self_attn.q_proj.weight``; None for a tensor that Llama has not."""
    module, _, kind = gguf_name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if module in _GLOBAL:
        return f"{_GLOBAL[module]}.{kind}"
    block = _BLOCK_NAME.fullmatch(module)
    if block is None or block[2] not in _BLOCK:
        return None
    return f"model.layers.{block[1]}.{_BLOCK[block[2]]}.{kind}"
