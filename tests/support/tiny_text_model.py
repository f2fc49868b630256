"""A tiny checkpoint with a tokenizer: one token per ASCII character."""

from pathlib import Path

import numpy as np
import tokenizers
from support.tiny_checkpoints import write_checkpoint
from tokenizers import Regex, decoders, models, pre_tokenizers

TEXT = " ".join(f"The {n * n} birds of line {n} sing {n % 7} songs to {n % 13} cats." for n in range(400))


def write_text_model(case: str, directory: Path, dtype=np.float32) -> Path:
    """One of ``tiny_checkpoints``' cases with tokenizer.json and tokenizer_config.json."""
    write_checkpoint(case, directory, dtype)
    characters = {chr(code): code for code in range(3, 128)}
    model = models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, **characters}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")  # pyright: ignore
    backend.decoder = decoders.Fuse()  # pyright: ignore
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return directory
