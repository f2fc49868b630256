"""Options of the engine, with LMDeploy's names and defaults."""

from dataclasses import dataclass

from jaxdeploy.errors import ConfigError

QUANT_POLICIES = (0, 8, 4)
LM_HEAD_BITS = (16, 8, 4)
DTYPES = ("auto", "bfloat16", "float16", "float32")
MODEL_FORMATS = ("hf", "awq", "gptq", "compressed-tensors", "gguf", "orbax")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a model is loaded and served.

    Attributes:
        dtype: of activations and of weights that are not quantized; "auto" is the checkpoint's own on a GPU, float32 on a CPU.
        model_format: what the checkpoint must be; None takes what it is.
        tp: GPUs to spread the model over; only 1 for now.
        session_len: most tokens of a request, prompt and answer; None takes the model's context length.
        max_batch_size: most sequences that run at once; None is 128 on a GPU, 8 on a CPU.
        cache_max_entry_count: a float in (0, 1) is the share of the memory left free by weights and step buffers that the KV cache
            takes; an integer >= 1 is its number of pages.
        cache_block_seq_len: tokens of a page.
        quant_policy: 0 keeps K and V in ``dtype``, 8 and 4 quantize them online to that many bits.
        kv_rotation: turn keys and values before they are quantized, so that a few large channels cost the others no precision; None
            does it for quant_policy 4.
        lm_head_bits: 16 keeps the output matrix as the checkpoint has it, 8 and 4 round it to integers when it is loaded.
        enable_prefix_caching: share the full pages of requests that begin with the same tokens.
        max_prefill_token_num: most tokens of a step that feeds prompts; None is 4096 on a GPU, 512 on a CPU. At least twice
            max_batch_size is used.
        num_tokens_per_iter: most tokens of such a step while answers go on in it; less keeps them smoother, more ends
            prompts sooner. None is 512 on a GPU, 64 on a CPU. Where many answers run it is four for each at least.
        num_speculative_tokens: guess so many tokens from what followed the same words before, and check them in one step; answers
            are the same and, where they repeat themselves or the prompt, sooner. 0 is off. Answers with penalties, logprobs or
            a grammar go without.
        seed: seeds the requests that bring no seed of their own; None draws one from the operating system.
        compile_cache: folder of JAX's persistent compilation cache; None leaves JAX's own setting, "" turns it off.
    """

    dtype: str = "auto"
    model_format: str | None = None
    tp: int = 1
    session_len: int | None = None
    max_batch_size: int | None = None
    cache_max_entry_count: float | int = 0.8
    cache_block_seq_len: int = 64
    quant_policy: int = 0
    kv_rotation: bool | None = None
    lm_head_bits: int = 16
    enable_prefix_caching: bool = True
    max_prefill_token_num: int | None = None
    num_tokens_per_iter: int | None = None
    num_speculative_tokens: int = 0
    seed: int | None = None
    compile_cache: str | None = None

    def __post_init__(self):
        """Refuse what can't work, before anything is loaded."""
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} must be one of {DTYPES}")
        if self.model_format not in (None, *MODEL_FORMATS):
            raise ConfigError(f"model_format={self.model_format!r} must be one of {MODEL_FORMATS}")
        if self.tp != 1:
            raise ConfigError(f"tp={self.tp}: tensor parallelism is not built yet; run with tp=1")
        if self.quant_policy not in QUANT_POLICIES:
            raise ConfigError(f"quant_policy={self.quant_policy} must be 0 (none), 8 or 4")
        if self.lm_head_bits not in LM_HEAD_BITS:
            raise ConfigError(f"lm_head_bits={self.lm_head_bits} must be one of {LM_HEAD_BITS}")
        if self.kv_rotation and not self.quant_policy:
            raise ConfigError("kv_rotation needs quant_policy 8 or 4: with 0 there is nothing to round")
        for name in ("session_len", "max_batch_size", "max_prefill_token_num", "num_tokens_per_iter"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if self.num_speculative_tokens < 0:
            raise ConfigError(f"num_speculative_tokens={self.num_speculative_tokens} must be at least 0")
        if self.cache_block_seq_len < 1:
            raise ConfigError(f"cache_block_seq_len={self.cache_block_seq_len} must be at least 1")
        share = self.cache_max_entry_count
        if isinstance(share, bool) or not (0 < share < 1 or (share >= 1 and float(share).is_integer())):
            raise ConfigError(
                f"cache_max_entry_count={share} must be a share of the free memory in (0, 1) or a whole number of pages >= 1"
            )

    @property
    def rotates(self) -> bool:
        """``kv_rotation`` with its default filled in."""
        return self.quant_policy == 4 if self.kv_rotation is None else self.kv_rotation
