"""Statistics of the inputs of every linear module, as a file of their own."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeploy import runtime
from jaxdeploy.demo import demo_model_path
from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.block import LINEARS, positions
from jaxdeploy.lite.block_stream import BlockStream
from jaxdeploy.lite.calibration import make_samples
from jaxdeploy.lite.layer_weights import LayerFiles, outer_names, read_finite
from jaxdeploy.lite.program import cast
from jaxdeploy.lite.progress import Progress
from jaxdeploy.lite.recipe import Calibration
from jaxdeploy.weights.checkpoint import Checkpoint, open_checkpoint
from jaxdeploy.weights.safetensors_writer import write_safetensors

FILE = "statistics.safetensors"


def write_statistics(
    model: str | Path | None,
    work_dir: str | Path,
    calibration: Calibration,
    *,
    force: bool = False,
    compile_cache: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run calibration text through the float model and write what its linear modules read.

    For every module, by its name in the checkpoint and float32 [K]: ``input_mean_abs``, ``input_max_abs``,
    ``input_mean_square``.

    Args:
        work_dir: folder for statistics.safetensors, made if missing.
        force: replace the file.

    Returns:
        The file.

    Raises:
        ConfigError: options that can't work, a quantized model, or a folder that can't be written.
        CheckpointError: a model that can't be read, or with NaN in its weights.
    """
    runtime.set_compile_cache(compile_cache)
    folder = Path(work_dir).expanduser()
    file, temporary = folder / FILE, folder / ".statistics.partial"
    if file.exists() and not force:
        raise ConfigError(f"{file} exists; choose another --work-dir, or --force to replace it")
    with closing(open_checkpoint(demo_model_path() if model is None else Path(model).expanduser())) as checkpoint:
        if checkpoint.source is None or checkpoint.config.quantization is not None:
            raise ConfigError(f"{checkpoint.path} can't be calibrated: give a float checkpoint in safetensors or GGUF")
        try:
            (temporary / "model.safetensors").unlink(missing_ok=True)
            (written,) = write_safetensors(temporary, _statistics(checkpoint, calibration, progress))
            written.replace(file)
            temporary.rmdir()
        except OSError as error:
            raise ConfigError(f"--work-dir {folder} can't be written: {error}; choose another") from error
    return file


def _statistics(
    checkpoint: Checkpoint, calibration: Calibration, progress: Progress | None
) -> Iterator[tuple[str, np.ndarray]]:
    config, source = checkpoint.config, checkpoint.source
    assert source is not None
    dtype = "float32" if jax.default_backend() == "cpu" else config.dtype
    samples = make_samples(checkpoint, calibration, dtype, progress)
    embedding = next(name for name, plan in outer_names(config) if plan.path[0] == "embedding")
    stream = BlockStream(
        config,
        read_finite(source, embedding),
        samples.calibration,
        batch=calibration.batch_size,
        dtype=dtype,
    )
    files = LayerFiles(config)
    for layer in range(config.num_layers):
        weights = cast(jax.device_put(files.read(source, layer)), dtype)
        places = positions(config, samples.calibration.shape[1], layer)
        counted = stream.statistics(weights, places)
        stream.advance(weights, places)
        for linear in LINEARS:
            found = counted[linear]
            square = np.array(jnp.diagonal(found.hessian))
            for module in files.module_names(linear, layer):
                yield f"{module}.input_mean_abs", np.asarray(found.mean_abs)
                yield f"{module}.input_max_abs", np.asarray(found.largest)
                yield f"{module}.input_mean_square", square
        if progress:
            progress("layers", layer + 1, config.num_layers)
