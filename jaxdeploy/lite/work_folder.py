"""The folder that a run works in, beside the one that it will write: layers that are done, and the model before it is whole."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.calibration_data import Samples
from jaxdeploy.weights.safetensors_files import SafetensorsFiles
from jaxdeploy.weights.safetensors_writer import write_safetensors

_SETTINGS, _SAMPLES, _RECORD = "settings.json", "samples.npz", "layer.json"


def partial_folder(destination: Path) -> Path:
    """Where a run that is to write ``destination`` works."""
    whole = destination.expanduser().absolute()
    return whole.parent / f".{whole.name}.partial"


def finished_layers(destination: Path) -> int:
    """How many layers an unfinished run has left for ``--resume``."""
    return len(list(partial_folder(destination).glob("layer-*")))


class WorkFolder:
    """``.NAME.partial`` beside the folder NAME. NAME itself appears only when it is complete.

    Args:
        destination: the folder to write.
        force: replace it if it is a model's folder.

    Raises:
        ConfigError: it can't be written, or holds something.
    """

    def __init__(self, destination: Path, *, force: bool = False):
        self.destination = destination.expanduser().absolute()
        self.path = partial_folder(destination)
        self._check_destination(force)

    def open(self, settings: dict[str, Any], *, resume: bool) -> bool:
        """Make the folder, or go on with the one that an interrupted run left.

        Args:
            settings: everything that decides the result, as JSON values; a run can be resumed only with the same.
            resume: go on; without it what is left of an earlier run is thrown away.

        Returns:
            True if there is something to go on with.

        Raises:
            ConfigError: the folder can't be made, or was made with other settings.
        """
        found = self.path / _SETTINGS
        if resume and found.is_file():
            before = json.loads(found.read_text(encoding="utf-8"))
            changed = [
                f"{k}: {before.get(k)!r} then, {settings.get(k)!r} now"
                for k in settings
                if before.get(k) != settings[k]
            ]
            if changed:
                raise ConfigError(
                    f"--resume: {self.path} was begun with other settings ({'; '.join(changed)}); use the same, or start over "
                    "without --resume"
                )
            return True
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self.path.mkdir(parents=True)
            found.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--work-dir {self.destination} can't be written: {error}; choose another") from error
        return False

    def discard_unless_begun(self) -> None:
        """Remove the folder if no layer is finished: there is nothing to go on with."""
        if not finished_layers(self.destination):
            shutil.rmtree(self.path, ignore_errors=True)

    def save_samples(self, samples: Samples) -> None:
        """Keep the calibration tokens, so that a resumed run has the same."""
        temporary = self.path / f".{_SAMPLES}"
        with temporary.open("wb") as file:
            np.savez_compressed(
                file, calibration=samples.calibration, held_out=samples.held_out, origin=np.array(samples.origin)
            )
        temporary.replace(self.path / _SAMPLES)

    def samples(self) -> Samples | None:
        """What ``save_samples`` kept."""
        if not (self.path / _SAMPLES).is_file():
            return None
        with np.load(self.path / _SAMPLES) as kept:
            return Samples(kept["calibration"], kept["held_out"], str(kept["origin"]))

    def save_layer(self, layer: int, tensors: Iterable[tuple[str, np.ndarray]], record: dict[str, Any]) -> None:
        """Keep a finished layer and what the report will say about it."""
        temporary = self.path / f".layer-{layer:05d}"
        shutil.rmtree(temporary, ignore_errors=True)
        write_safetensors(temporary, tensors)
        (temporary / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        temporary.rename(self._layer(layer))

    def layer_record(self, layer: int) -> dict[str, Any] | None:
        """The record of a finished layer, None if it is not finished."""
        file = self._layer(layer) / _RECORD
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def layer_source(self, layer: int) -> SafetensorsFiles:
        """The tensors of a finished layer; close it after use."""
        return SafetensorsFiles(self._layer(layer))

    @property
    def model(self) -> Path:
        """Where the model is put together."""
        return self.path / "model"

    def publish(self) -> Path:
        """Give the complete model its name and remove the rest."""
        if self.destination.exists():
            old = self.path / "replaced"
            self.destination.rename(old)
        self.model.rename(self.destination)
        shutil.rmtree(self.path, ignore_errors=True)
        return self.destination

    def _layer(self, layer: int) -> Path:
        return self.path / f"layer-{layer:05d}"

    def _check_destination(self, force: bool) -> None:
        there = self.destination
        if there.exists() and not there.is_dir():
            raise ConfigError(f"--work-dir {there} is a file; give a folder")
        if not there.exists() or not any(there.iterdir()):
            return
        if not force:
            raise ConfigError(f"--work-dir {there} is not empty; choose another, or --force to replace it")
        if not (there / "config.json").is_file():
            raise ConfigError(
                f"--work-dir {there} is no model's folder (it has no config.json), so --force does not replace it"
            )
