"""Engine options that several commands share, with LMDeploy's names; what a value may be is EngineConfig's business.

A command takes those it needs as one parameter, by ``with_options("engine", EngineOptions())``.
"""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from jaxdeploy.config.engine import DTYPES, LM_HEAD_BITS, MODEL_FORMATS, QUANT_POLICIES, EngineConfig
from jaxdeploy.errors import ConfigError

DEFAULTS = EngineConfig()
_PANEL = "Engine"

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Folder of a Hugging Face or Orbax checkpoint, or a GGUF file. Without it: the demo model, "
        "SmolLM2-135M-Instruct.",
        show_default=False,
    ),
]
CompileCache = Annotated[
    str | None,
    typer.Option(
        "--compile-cache",
        metavar="FOLDER",
        help="Where compiled programs are kept for the next start; an empty text turns that off. "
        "Default: JAX_COMPILATION_CACHE_DIR, else jaxdeploy/xla in the user's cache.",
        rich_help_panel=_PANEL,
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="NAME|FILE",
        help="Use this instead of the checkpoint's chat template: a built-in one's name, a .jinja or a JSON file.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The engine's options as they are typed, in the help's order; EngineConfig tells what they are and checks them."""

    session_len: Annotated[
        int | None,
        typer.Option(
            "--session-len",
            help="Most tokens of a conversation, prompt and answer. Default: the model's context length.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULTS.session_len
    cache_max_entry_count: Annotated[
        str,
        typer.Option(
            "--cache-max-entry-count",
            metavar="SHARE|PAGES",
            help="Memory of the KV cache: a share below 1 of what weights and step buffers leave free, "
            "or a whole number of pages.",
            rich_help_panel=_PANEL,
        ),
    ] = str(DEFAULTS.cache_max_entry_count)
    cache_block_seq_len: Annotated[
        int, typer.Option("--cache-block-seq-len", help="Tokens of a page of the KV cache.", rich_help_panel=_PANEL)
    ] = DEFAULTS.cache_block_seq_len
    quant_policy: Annotated[
        int,
        typer.Option(
            "--quant-policy",
            metavar="|".join(map(str, QUANT_POLICIES)),
            help="Bits of keys and values in the KV cache; 0 keeps them in --dtype.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULTS.quant_policy
    kv_rotation: Annotated[
        bool | None,
        typer.Option(
            "--kv-rotation/--no-kv-rotation",
            help="Turn keys and values before they are quantized, so that a few large channels cost the others no precision. "
            "Default: for --quant-policy 4.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULTS.kv_rotation
    lm_head_bits: Annotated[
        int,
        typer.Option(
            "--lm-head-bits",
            metavar="|".join(map(str, LM_HEAD_BITS)),
            help="Bits of the output matrix; 8 and 4 round it when it is loaded.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULTS.lm_head_bits
    model_format: Annotated[
        str | None,
        typer.Option(
            "--model-format",
            help=f"What the checkpoint must be: {', '.join(MODEL_FORMATS)}. Default: what it is.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULTS.model_format
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help=f"Of activations and unquantized weights: {', '.join(DTYPES)}. auto: the checkpoint's own on a GPU, "
            "float32 on a CPU.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULTS.dtype
    tp: Annotated[
        int, typer.Option("--tp", help="GPUs to spread the model over; 1 for now.", rich_help_panel=_PANEL)
    ] = DEFAULTS.tp
    max_batch_size: Annotated[
        int | None,
        typer.Option("--max-batch-size", help="Most sequences that run at once.", rich_help_panel=_PANEL),
    ] = DEFAULTS.max_batch_size
    enable_prefix_caching: Annotated[
        bool,
        typer.Option(
            "--enable-prefix-caching/--no-enable-prefix-caching",
            help="Share the cache of requests that begin with the same tokens.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULTS.enable_prefix_caching
    max_prefill_token_num: Annotated[
        int | None,
        typer.Option(
            "--max-prefill-token-num", help="Most tokens of a step that feeds prompts.", rich_help_panel=_PANEL
        ),
    ] = DEFAULTS.max_prefill_token_num
    num_tokens_per_iter: Annotated[
        int | None,
        typer.Option(
            "--num-tokens-per-iter",
            help="Most tokens of such a step while answers go on in it: less keeps them smoother, more ends prompts sooner.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULTS.num_tokens_per_iter
    num_speculative_tokens: Annotated[
        int,
        typer.Option(
            "--num-speculative-tokens",
            help="Guess so many tokens from what followed the same words before, and check them in one step: the same answers, "
            "sooner where they repeat themselves or the prompt. 0 is off.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULTS.num_speculative_tokens
    compile_cache: CompileCache = DEFAULTS.compile_cache

    def config(self) -> EngineConfig:
        """What the engine is built with.

        Raises:
            ConfigError: a value that can't work.
        """
        share_or_pages = parse_entry_count(self.cache_max_entry_count)
        return EngineConfig(**{**asdict(self), "cache_max_entry_count": share_or_pages})


def parse_entry_count(text: str) -> float | int:
    """``"0.8"`` as a share (float), ``"128"`` as a number of pages (int).

    Raises:
        ConfigError: ``text`` is not a number. Whether the number makes sense is checked by EngineConfig.
    """
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    raise ConfigError(
        f"--cache-max-entry-count={text!r} must be a share such as 0.8, or a whole number of pages such as 128"
    )
