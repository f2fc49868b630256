"""The settings that decide what a quantization run gives: how, and on what text. No jax here."""

from dataclasses import dataclass

from jaxdeploy.errors import ConfigError

SCALINGS = ("none", "fixed", "search")
ROUNDINGS = ("nearest", "gptq", "learned")
FORMATS = ("awq", "gptq")
SELF = "self"
"""Names text that the model writes itself, in place of a dataset."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Int4 weights with one scale and zero point per output and group of inputs.

    Attributes:
        bits: always 4.
        group_size: G, inputs that share a scale; -1 is all inputs of an output.
        scaling: of input channels before rounding (AWQ, arXiv:2306.00978): "none", "fixed" (alpha 0.5 everywhere, LMDeploy's
            default recipe) or "search" (the alpha of a grid with the least error of the block's output).
        clip: search each group's range for the least error of its output.
        rounding: "nearest", "gptq" (arXiv:2210.17323) or "learned" (signed gradient steps, arXiv:2309.05516).
        format: layout of the checkpoint: "awq" (AutoAWQ gemm) or "gptq".
        act_order: GPTQ rounds columns in the order of their importance. In format "gptq" groups follow that order too
            (``g_idx``); in format "awq", which can't say so, each group's scale is fixed before.
        rotate_values: turn values by a Hadamard matrix, folded into the weights before they are rounded. Every engine computes the
            same with them; ours then needs no turning at run time for a quantized KV cache.
        damping: added to the Hessian's diagonal, as a share of its mean.
        alphas: points of the grid.
        search_tokens: most calibration tokens that the scale search looks at.
        steps: gradient steps per layer of "learned".
        step_tokens: calibration tokens of one step.
        seed: of everything random.
    """

    bits: int = 4
    group_size: int = 128
    scaling: str = "search"
    clip: bool = True
    rounding: str = "nearest"
    format: str = "awq"
    act_order: bool = False
    rotate_values: bool = False
    damping: float = 0.01
    alphas: int = 20
    search_tokens: int = 8192
    steps: int = 200
    step_tokens: int = 4096
    seed: int = 0

    def __post_init__(self):
        """Refuse what can't work."""
        if self.bits != 4:
            raise ConfigError(f"--w-bits {self.bits} is not supported; it must be 4")
        if self.group_size != -1 and (self.group_size < 8 or self.group_size % 8):
            raise ConfigError(f"--w-group-size {self.group_size} must be a multiple of 8 (128 is usual), or -1")
        for name, allowed in (("scaling", SCALINGS), ("rounding", ROUNDINGS), ("format", FORMATS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        if self.act_order and self.rounding != "gptq":
            raise ConfigError(f"act_order needs rounding='gptq', not {self.rounding!r}")
        for name in ("alphas", "search_tokens", "steps", "step_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.damping < 1:
            raise ConfigError(f"damping={self.damping} must be between 0 and 1")

    @property
    def lowest_zero(self) -> int:
        """Smallest zero point. GPTQ files store it less one, and readers disagree on what a stored -1 is."""
        return 1 if self.format == "gptq" else 0

    @property
    def stored_act_order(self) -> bool:
        """The checkpoint carries a column order (``desc_act``)."""
        return self.act_order and self.format == "gptq"

    def group_of(self, inputs: int) -> int:
        """G of a matrix with so many inputs."""
        return inputs if self.group_size == -1 else self.group_size


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration options.

    Attributes:
        dataset: file, folder, known name or "self"; None tries wikitext2 and falls back to "self".
        samples: how many.
        seqlen: tokens of each.
        batch_size: samples that pass through a layer at once.
        chat: put texts into the model's chat format.
        eval_text: file to measure perplexity on; None takes samples of the dataset that are not calibrated on.
        eval_samples: how many, of ``seqlen`` tokens; 0 measures nothing.
        sample_seed: of the choice of samples.
    """

    dataset: str | None = None
    samples: int = 128
    seqlen: int = 2048
    batch_size: int = 1
    chat: bool = False
    eval_text: str | None = None
    eval_samples: int = 8
    sample_seed: int = 0

    def __post_init__(self):
        """Refuse what can't work."""
        for option, value, least in (
            ("--calib-samples", self.samples, 1),
            ("--calib-seqlen", self.seqlen, 2),
            ("--batch-size", self.batch_size, 1),
            ("--eval-samples", self.eval_samples, 0),
        ):
            if value < least:
                raise ConfigError(f"{option} {value} must be at least {least}")
        if self.chat and self.dataset == SELF:
            raise ConfigError("--calib-chat needs a dataset; text sampled from the model has no turns")
