"""What a quantization run did: the numbers, as text and as JSON."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer.

    Attributes:
        error: squared error of its output as a share of what it adds to its input.
        seconds: that it took.
        alphas: the scale search's choice by linear module; None where it left the module alone.
        shares: mean share of its range that a group spans after the clip search.
    """

    layer: int
    error: float
    seconds: float
    alphas: dict[str, float | None]
    shares: dict[str, float]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage: wall time and peaks so far at its end, in bytes; ``device_bytes`` None where the device does not say."""

    name: str
    seconds: float
    host_bytes: int
    device_bytes: int | None


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """A run.

    Attributes:
        model, work_dir: what was read and written.
        settings: of the recipe and of the calibration.
        samples, sample_tokens: calibration samples that were used, and tokens of each.
        held_out: samples that perplexity was measured on; 0 if there were none.
        loss_before, loss_after: mean negative log-likelihood per held-out token, natural log; None without any.
        bytes_before, bytes_after: of the weights (of a GGUF file: in the model's dtype), and of the files written.
        device: JAX's name of it.
    """

    model: str
    work_dir: str
    settings: dict[str, Any]
    origin: str
    samples: int
    sample_tokens: int
    held_out: int
    loss_before: float | None
    loss_after: float | None
    bytes_before: int
    bytes_after: int
    device: str
    seconds: float
    layers: tuple[LayerRecord, ...]
    stages: tuple[StageRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def worst_layers(self, count: int = 3) -> list[LayerRecord]:
        """The layers with the largest error."""
        return sorted(self.layers, key=lambda record: -record.error)[:count]


def format_size(count: int | None) -> str:
    """Bytes in units of 1024; "-" for None."""
    if count is None:
        return "-"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def format_perplexity(loss: float | None) -> str:
    """exp of the loss; "-" for None."""
    return "-" if loss is None else f"{math.exp(loss):.3f}"


def report_lines(report: QuantizationReport) -> list[str]:
    """The report for a terminal."""
    ratio = report.bytes_before / max(report.bytes_after, 1)
    lines = [
        f"{report.model} -> {report.work_dir}  ({report.device}, {report.seconds:.0f} s)",
        f"calibrated on {report.samples} x {report.sample_tokens} tokens of {report.origin}",
        "",
        f"{'':<12}{'before':>12}{'after':>12}",
        f"{'perplexity':<12}{format_perplexity(report.loss_before):>12}{format_perplexity(report.loss_after):>12}"
        + (
            f"   on {report.held_out} x {report.sample_tokens} held-out tokens"
            if report.held_out
            else "   no held-out text"
        ),
        f"{'size':<12}{format_size(report.bytes_before):>12}{format_size(report.bytes_after):>12}   {ratio:.2f} times smaller",
        "",
        f"{'stage':<12}{'seconds':>12}{'peak host':>12}{'peak device':>14}",
    ]
    lines += [
        f"{stage.name:<12}{stage.seconds:>12.1f}{format_size(stage.host_bytes):>12}{format_size(stage.device_bytes):>14}"
        for stage in report.stages
    ]
    worst = ", ".join(f"{record.layer} ({record.error:.2%})" for record in report.worst_layers())
    return [*lines, "", f"worst layers (squared error of what the layer adds): {worst}"]
