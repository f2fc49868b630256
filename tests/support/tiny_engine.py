"""A small random model with a byte-like tokenizer, and an engine over it."""

import jax

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.request import Output
from jaxdeploy.model.decoder import random_parameters
from jaxdeploy.text.tokenizer import Tokenizer

VOCABULARY = 128
END = 0

CONFIG = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": END,
    }
)


class AsciiTokenizer(Tokenizer):
    """One token per ASCII character; 0 ends a text."""

    vocab_size = VOCABULARY
    bos_id = None
    bos_token = None
    eos_token = "<end>"
    eos_ids = (END,)
    special_ids = frozenset({END})
    special_tokens = {"<end>": END}  # noqa: RUF012
    prefix_ids = ()
    suffix_ids = ()
    chat_template = None

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token else b"<end>"

    def token_to_id(self, token: str) -> int | None:
        return END if token == "<end>" else ord(token)

    def id_to_token(self, token: int) -> str | None:
        return chr(token) if token else "<end>"

    def _encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def _drops_leading_space(self, previous: int | None) -> bool:
        return False


def tiny_parameters(config: ModelConfig = CONFIG, seed: int = 0) -> dict:
    """Random weights, large enough that tokens follow each other in no simple pattern."""
    return jax.tree.map(
        lambda leaf: leaf * 8 if leaf.ndim > 2 or leaf.shape[0] == VOCABULARY else leaf,
        random_parameters(config, "float32", seed),
    )


def tiny_engine(**options) -> Engine:
    """An engine over the tiny model; options are EngineConfig's. Its weights are committed to a device, as the loader's are."""
    small = {"max_batch_size": 4, "cache_block_seq_len": 8, "cache_max_entry_count": 64, "max_prefill_token_num": 32}
    config = EngineConfig(**{**small, **options})
    params = jax.device_put(tiny_parameters(), jax.devices()[0])
    return Engine(CONFIG, params, AsciiTokenizer(), config, Limits.resolve(config, CONFIG, platform="cpu"))


def run_all(engine: Engine, most_steps: int = 2000) -> list[Output]:
    """Step until nothing is left to do."""
    outputs = []
    for _ in range(most_steps):
        if not engine.has_work:
            return outputs
        outputs += engine.step()
    raise AssertionError(f"the engine still has work after {most_steps} steps")


def tokens_of(outputs: list[Output], request_id: str, index: int = 0) -> list[int]:
    """All tokens of one answer."""
    return [t for o in outputs if (o.request_id, o.index) == (request_id, index) for t in o.token_ids]


def text_of(outputs: list[Output], request_id: str, index: int = 0) -> str:
    """The text of one answer."""
    return "".join(o.text for o in outputs if (o.request_id, o.index) == (request_id, index))
