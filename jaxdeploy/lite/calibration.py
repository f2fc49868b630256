"""From calibration options to token samples."""

import sys
from pathlib import Path

import numpy as np

from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.calibration_data import DEFAULT_NAME, Document, Samples, cut_samples, load_documents
from jaxdeploy.lite.progress import Progress
from jaxdeploy.lite.recipe import SELF, Calibration
from jaxdeploy.lite.self_text import sample_self
from jaxdeploy.loading import tokenizer_of
from jaxdeploy.text.chat_template_choice import choose_chat_template
from jaxdeploy.text.tokenizer import Tokenizer
from jaxdeploy.weights.checkpoint import Checkpoint


def make_samples(
    checkpoint: Checkpoint, calibration: Calibration, dtype: str, progress: Progress | None = None
) -> Samples:
    """The token samples for a model.

    Args:
        dtype: in which the model runs if it has to write the text itself.

    Raises:
        ConfigError: the dataset can't be had, or is too short.
    """
    if calibration.seqlen > checkpoint.config.max_position_embeddings:
        raise ConfigError(
            f"--calib-seqlen {calibration.seqlen} is more than the model's context of "
            f"{checkpoint.config.max_position_embeddings} tokens"
        )
    tokenizer = tokenizer_of(checkpoint)
    documents = _documents(calibration)
    held_out = calibration.eval_samples if calibration.eval_text is None else 0
    if documents is None:
        samples = sample_self(
            checkpoint,
            tokenizer,
            samples=calibration.samples,
            length=calibration.seqlen,
            held_out=held_out,
            seed=calibration.sample_seed,
            dtype=dtype,
            progress=progress,
        )
    else:
        template = choose_chat_template(checkpoint.config.family, tokenizer, None) if calibration.chat else None
        samples = cut_samples(
            documents,
            tokenizer,
            samples=calibration.samples,
            length=calibration.seqlen,
            held_out=held_out,
            seed=calibration.sample_seed,
            origin=calibration.dataset or DEFAULT_NAME,
            template=template,
        )
    if len(samples.calibration) < calibration.samples:
        _note(f"{samples.origin} has text for {len(samples.calibration)} of {calibration.samples} calibration samples")
    if calibration.eval_text is not None and calibration.eval_samples:
        samples = Samples(samples.calibration, _eval_windows(calibration, tokenizer), samples.origin)
    _check_ids(samples, checkpoint.config.vocab_size)
    return samples


def _documents(calibration: Calibration) -> list[Document] | None:
    if calibration.dataset == SELF:
        return None
    if calibration.dataset is not None:
        return load_documents(calibration.dataset)
    try:
        return load_documents(DEFAULT_NAME)
    except ConfigError as error:
        if calibration.chat:
            raise
        _note(f"no --calib-dataset, and {error}. Sampling text from the model itself ({SELF})")
        return None


def _eval_windows(calibration: Calibration, tokenizer: Tokenizer) -> np.ndarray:
    """Windows of the evaluation text from its start, in order."""
    path = Path(calibration.eval_text or "").expanduser()
    try:
        ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--eval-text {path} can't be read as UTF-8 text: {error}") from error
    count = min(len(ids) // calibration.seqlen, calibration.eval_samples)
    if not count:
        raise ConfigError(f"--eval-text {path} has {len(ids)} tokens, fewer than one sample of {calibration.seqlen}")
    return np.array(ids[: count * calibration.seqlen], np.int32).reshape(count, calibration.seqlen)


def _check_ids(samples: Samples, vocab_size: int) -> None:
    for tokens in (samples.calibration, samples.held_out):
        if tokens.size and tokens.max() >= vocab_size:
            raise ConfigError(f"the tokenizer gives id {tokens.max()}, but the model has {vocab_size} embeddings")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
