"""A whole run: calibrate, quantize layer by layer, write the checkpoint, report."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdeploy import runtime
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.demo import demo_model_path
from jaxdeploy.errors import ConfigError, UserError
from jaxdeploy.lite.block import positions
from jaxdeploy.lite.block_stream import BlockStream, mean_loss
from jaxdeploy.lite.calibration import make_samples
from jaxdeploy.lite.calibration_data import Samples
from jaxdeploy.lite.layer_programs import LayerShapes, compile_layer, compiles_ahead
from jaxdeploy.lite.layer_quantizer import LayerQuantizer, QuantizedLayer
from jaxdeploy.lite.layer_weights import LayerFiles, outer_names, read_finite
from jaxdeploy.lite.program import cast
from jaxdeploy.lite.progress import Progress
from jaxdeploy.lite.recipe import Calibration, Recipe
from jaxdeploy.lite.report import LayerRecord, QuantizationReport, StageRecord
from jaxdeploy.lite.report_charts import write_charts
from jaxdeploy.lite.report_html import write_html
from jaxdeploy.lite.stages import Stage, Stages
from jaxdeploy.lite.work_folder import WorkFolder
from jaxdeploy.lite.writer import Target, plan_target, write_model
from jaxdeploy.weights.checkpoint import Checkpoint, open_checkpoint
from jaxdeploy.weights.value_fold import turned


@dataclass
class _Streams:
    """Activations on their way: as the quantized layers leave them, and as the float layers do.

    Attributes:
        quantized: of the calibration samples.
        exact: of the same through the float layers, if something aims at them.
        held_out, held_out_exact: of the samples for the perplexity, None if there are none.
    """

    quantized: BlockStream
    exact: BlockStream | None
    held_out: BlockStream | None
    held_out_exact: BlockStream | None


Observer = Callable[[LayerRecord, Mapping[str, Stage]], None]
"""Called after each layer with its record and the stages so far."""


def quantize_model(
    model: str | Path | None,
    work_dir: str | Path,
    recipe: Recipe,
    calibration: Calibration,
    *,
    resume: bool = False,
    force: bool = False,
    compile_cache: str | None = None,
    progress: Progress | None = None,
) -> QuantizationReport:
    """Quantize a model's linear layers to int4 and write a Hugging Face checkpoint.

    Weights are read one layer at a time, so the device holds one layer, its copies and the activations of the calibration.

    Args:
        model: folder or GGUF file; None is the embedded demo model.
        work_dir: the folder to write; it appears when it is complete.
        recipe: how to quantize.
        calibration: on what.
        resume: go on with what an interrupted run of the same settings has done.
        force: replace ``work_dir`` if it holds a model.
        compile_cache: as for the engine.
        progress: called with ("sample" | "layers", done, total).

    Raises:
        ConfigError: options that can't work, or a folder that can't be written.
        CheckpointError: a model that can't be read, or with NaN in its weights.
    """
    runtime.set_compile_cache(compile_cache)
    checkpoint = open_checkpoint(demo_model_path() if model is None else Path(model).expanduser())
    try:
        return quantize_checkpoint(
            checkpoint, work_dir, recipe, calibration, resume=resume, force=force, progress=progress
        )
    finally:
        checkpoint.close()


def quantize_checkpoint(
    checkpoint: Checkpoint,
    work_dir: str | Path,
    recipe: Recipe,
    calibration: Calibration,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    observe: Observer | None = None,
    samples: Samples | None = None,
) -> QuantizationReport:
    """``quantize_model`` of a checkpoint that is open, and stays open.

    Args:
        observe: see there; what it raises ends the run.
        samples: tokens to take instead of making them as ``calibration`` says.
    """
    target = plan_target(checkpoint, recipe)
    work = WorkFolder(Path(work_dir), force=force)
    run = _Run(checkpoint, target, recipe, calibration, work, progress, observe)
    with _disk_errors(work):
        try:
            return run.go(resume, samples)
        except UserError:
            work.discard_unless_begun()
            raise


@contextmanager
def _disk_errors(work: WorkFolder) -> Iterator[None]:
    """One clear line for a disk that is full or gone; what is done is kept."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{work.path} can't be written: {error}; free some space, then run again with --resume to go on"
        ) from error


class _Run:
    def __init__(
        self,
        checkpoint: Checkpoint,
        target: Target,
        recipe: Recipe,
        calibration: Calibration,
        work: WorkFolder,
        progress: Progress | None,
        observe: Observer | None,
    ):
        self.checkpoint, self.target, self.recipe = checkpoint, target, recipe
        self.calibration, self.work, self.progress, self.observe = calibration, work, progress, observe
        self.config: ModelConfig = checkpoint.config
        self.stages = Stages()
        # A CPU multiplies float32 faster than it emulates bfloat16.
        self.dtype = "float32" if jax.default_backend() == "cpu" else target.dtype
        self.float_files, self.int4_files = LayerFiles(self.config), LayerFiles(target.config, target.layout)
        self.quantizer = LayerQuantizer(self.config, recipe, target.dtype, self.stages)
        self._reader: ThreadPoolExecutor
        self._writer: ThreadPoolExecutor
        self._next: Future[dict[str, np.ndarray]] | None = None
        self._saving: Future[None] | None = None

    def go(self, resume: bool, given: Samples | None = None) -> QuantizationReport:
        begun = time.perf_counter()
        settings = {"model": str(self.checkpoint.path.resolve()), **asdict(self.recipe), **asdict(self.calibration)}
        self.work.open(settings, resume=resume)
        with self.stages.timed("samples"):
            samples = self._samples(given)
            streams = self._streams(samples)
        records = []
        with ThreadPoolExecutor(1, "read") as self._reader, ThreadPoolExecutor(1, "write") as self._writer:
            self._read_ahead(0)
            if compiles_ahead():
                self._compile(streams.quantized.chunks)
            for layer in range(self.config.num_layers):
                records.append(self._layer(layer, streams, samples.calibration.shape[1]))
                if self.observe:
                    self.observe(records[-1], self.stages.by_name)
                if self.progress:
                    self.progress("layers", layer + 1, self.config.num_layers)
            with self.stages.timed("write"):
                self._saved()
        with self.stages.timed("perplexity"):
            before, after = self._losses(streams, samples.held_out)
        with self.stages.timed("write"):
            written = write_model(self.work, self.checkpoint, self.target)
        report = QuantizationReport(
            model=self.checkpoint.path.name,
            work_dir=str(written),
            settings=settings,
            origin=samples.origin,
            samples=len(samples.calibration),
            sample_tokens=samples.calibration.shape[1],
            held_out=len(samples.held_out),
            loss_before=before,
            loss_after=after,
            bytes_before=self._bytes_before(),
            bytes_after=sum(file.stat().st_size for file in written.glob("*.safetensors")),
            device=jax.devices()[0].device_kind,
            seconds=time.perf_counter() - begun,
            layers=tuple(records),
            stages=tuple(
                StageRecord(name, stage.seconds, stage.host_bytes, stage.device_bytes)
                for name, stage in self.stages.by_name.items()
            ),
        )
        (written / "report.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
        write_html(report, written / "report.html")
        write_charts(report, written)
        return report

    def _samples(self, given: Samples | None) -> Samples:
        kept = self.work.samples()
        if kept is not None:
            return kept
        samples = given or make_samples(self.checkpoint, self.calibration, self.dtype, self.progress)
        self.work.save_samples(samples)
        return samples

    def _streams(self, samples: Samples) -> _Streams:
        embedding = self._outer("embedding")

        def stream(tokens: np.ndarray) -> BlockStream:
            return BlockStream(self.config, embedding, tokens, batch=self.calibration.batch_size, dtype=self.dtype)

        held_out = samples.held_out if len(samples.held_out) else None
        return _Streams(
            quantized=stream(samples.calibration),
            exact=stream(samples.calibration) if self.recipe.rounding == "learned" else None,
            held_out=None if held_out is None else stream(held_out),
            held_out_exact=None if held_out is None else stream(held_out),
        )

    def _compile(self, chunks: list[jax.Array]) -> None:
        assert self._next is not None
        if self.work.layer_record(self.config.num_layers - 1) is not None:
            return
        described = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in self._next.result().items()
        }
        shape = chunks[0].shape
        alike = sum(chunk.shape == shape for chunk in chunks)
        with self.stages.timed("compile"):
            compile_layer(self.config, self.recipe, LayerShapes(described, shape, alike, self.dtype, self.target.dtype))

    def _layer(self, layer: int, streams: _Streams, length: int) -> LayerRecord:
        begun = time.perf_counter()
        with self.stages.timed("read"):
            assert self._next is not None
            weights = cast(jax.device_put(self._next.result()), "float32")
            if self.recipe.rotate_values and self.config.value_rotation != "stored":
                weights = {name: turned(self.config, name, array) for name, array in weights.items()}
            weights = jax.block_until_ready(weights)
            self._read_ahead(layer + 1)
        places = positions(self.config, length, layer)
        with self.stages.timed("forward"):
            for stream in (streams.exact, streams.held_out_exact):
                if stream is not None:
                    stream.advance(cast(weights, self.dtype), places)
                    jax.block_until_ready(stream.chunks)
        record = self.work.layer_record(layer)
        if record is None:
            done = self.quantizer.quantize(weights, streams.quantized, streams.exact, places)
            changed = done.weights
            with self.stages.timed("write"):
                record = self._save(layer, done, time.perf_counter() - begun)
        else:
            source = self.work.layer_source(layer)
            changed = cast(jax.device_put(self.int4_files.read(source, layer)), "float32")
            source.close()
        with self.stages.timed("forward"):
            for stream in (streams.quantized, streams.held_out):
                if stream is not None:
                    stream.advance(cast(changed, self.dtype), places)
                    jax.block_until_ready(stream.chunks)
        return LayerRecord(**record)

    def _save(self, layer: int, done: QuantizedLayer, seconds: float) -> dict[str, Any]:
        record = asdict(LayerRecord(layer, done.error, seconds, done.alphas, done.shares))
        packed = {f"{linear}.weight" for linear in done.linears}
        floats = {name: np.asarray(array) for name, array in done.weights.items() if name not in packed}
        self._saved()

        def save() -> None:
            dtype = self.target.numpy_dtype
            matrices = {linear: part.matrix(dtype) for linear, part in done.linears.items()}
            self.work.save_layer(layer, self.int4_files.tensors(floats, matrices, layer, dtype), record)

        # Packing takes the host as long as the device takes for the next layer.
        self._saving = self._writer.submit(save)
        return record

    def _saved(self) -> None:
        """Wait for the layer that is being written; its errors come up here."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _read_ahead(self, layer: int) -> None:
        """Begin to read a layer while the device has another to do."""
        source = self.checkpoint.source
        assert source is not None
        more = layer < self.config.num_layers
        self._next = self._reader.submit(self.float_files.read, source, layer) if more else None

    def _losses(self, streams: _Streams, tokens: np.ndarray) -> tuple[float | None, float | None]:
        if streams.held_out is None or streams.held_out_exact is None:
            return None, None
        norm = self._outer("norm")
        head = self._outer("embedding" if self.config.tie_word_embeddings else "lm_head")
        losses = [
            mean_loss(self.config, stream, norm, head, tokens) for stream in (streams.held_out_exact, streams.held_out)
        ]
        return losses[0], losses[1]

    def _outer(self, kind: str) -> np.ndarray:
        """A tensor outside of the layers, by the first key of its path in the parameter tree."""
        assert self.checkpoint.source is not None
        name = next(name for name, plan in outer_names(self.config) if plan.path[0] == kind)
        return read_finite(self.checkpoint.source, name)

    def _bytes_before(self) -> int:
        """Of the weights; those of a GGUF file, which are quantized themselves, as they would be in the model's dtype."""
        source = self.checkpoint.source
        assert source is not None
        infos = [source.info(name) for name in source.names()]
        if self.checkpoint.kind == "gguf":
            return sum(math.prod(info.shape) for info in infos) * np.dtype(self.target.numpy_dtype).itemsize
        return sum(info.nbytes for info in infos)
