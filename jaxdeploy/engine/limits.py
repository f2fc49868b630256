"""Engine options with every default resolved for this model and this device."""

from dataclasses import dataclass

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import ConfigError

# (CPU, GPU): a CPU computes a step's tokens one after another, so large steps only add latency there.
MAX_BATCH_SIZE = (8, 128)
MAX_PREFILL_TOKENS = (512, 4096)
# An H100 is busy with 512 tokens already; a CPU takes most of a second for 64 of a small model.
MIXED_TOKENS = (64, 512)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine will run with.

    Attributes:
        dtype: of activations and dense weights.
        session_len: most tokens of a request.
        batch_size: most sequences at once.
        prefill_tokens: most tokens of a step that feeds prompts, at least twice ``batch_size``.
        mixed_tokens: most of one in which answers go on, too.
        page_size: tokens of a page.
    """

    dtype: str
    session_len: int
    batch_size: int
    prefill_tokens: int
    mixed_tokens: int
    page_size: int

    @classmethod
    def resolve(cls, options: EngineConfig, model: ModelConfig, *, platform: str) -> "Limits":
        """Fill in what the options leave open.

        Raises:
            ConfigError: a session_len beyond what the model's positions allow.
        """
        on_gpu = platform != "cpu"
        dtype = options.dtype
        if dtype == "auto":
            dtype = model.dtype if on_gpu else "float32"
        longest = longest_context(model)
        session_len = options.session_len or longest
        if session_len > longest and not model.rope.kind == "dynamic":
            raise ConfigError(f"{session_len=} is longer than the model's context of {longest} tokens")
        batch_size = options.max_batch_size or MAX_BATCH_SIZE[on_gpu]
        prefill = min(options.max_prefill_token_num or MAX_PREFILL_TOKENS[on_gpu], session_len * batch_size)
        # A step that is full of answers and their drafts must have room for prompts.
        prefill = max(prefill, 2 * batch_size * (1 + options.num_speculative_tokens))
        return cls(
            dtype=dtype,
            session_len=session_len,
            batch_size=batch_size,
            prefill_tokens=prefill,
            mixed_tokens=min(options.num_tokens_per_iter or MIXED_TOKENS[on_gpu], prefill),
            page_size=options.cache_block_seq_len,
        )

    @property
    def table_width(self) -> int:
        """Pages of the longest sequence."""
        return -(-self.session_len // self.page_size)


def longest_context(model: ModelConfig) -> int:
    """Tokens that the model's positions are made for; dynamic NTK may be asked for more by name of session_len."""
    stretched = model.rope.kind == "yarn" and model.rope.original_max_position == model.max_position_embeddings
    return int(model.max_position_embeddings * (model.rope.factor if stretched else 1))
