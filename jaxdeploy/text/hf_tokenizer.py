"""Tokenizers of the `tokenizers` library: Hugging Face's tokenizer.json, and byte-level BPE rebuilt from GGUF."""

import json
from dataclasses import replace
from pathlib import Path

import tokenizers
from tokenizers import processors

from jaxdeploy.errors import CheckpointError
from jaxdeploy.text.tokenizer import Tokenizer
from jaxdeploy.text.tokenizer_config import TokenizerConfig, read_tokenizer_config

_DECODERS = "ByteLevel, Metaspace, or Replace / ByteFallback / Fuse / Strip in sequence"


class HfTokenizer(Tokenizer):
    """A `tokenizers.Tokenizer` with its configuration.

    Args:
        backend: the tokenizer; its truncation and padding are switched off, missing added tokens are added.
        config: what the files beside it say.
        source: file that the backend came from, for messages.

    Raises:
        CheckpointError: an added token can't have the id the configuration gives it, or the decoder is unknown.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: TokenizerConfig, source: str):
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        _add_missing_tokens(backend, config, source)
        self._decoder = _Decoder(backend, source)
        self._bytes: dict[int, bytes] = {}
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        added = {
            token.content: (token_id, token.special) for token_id, token in backend.get_added_tokens_decoder().items()
        }
        self._set_special(config, added)
        self.prefix_ids, self.suffix_ids = self._affixes(config)

    def token_bytes(self, token: int) -> bytes:
        known = self._bytes.get(token)
        if known is None:
            piece = self._backend.id_to_token(token) if token >= 0 else None
            known = b"" if piece is None else self._decoder.piece_bytes(piece, special=token in self.special_ids)
            self._bytes[token] = known
        return known

    def text_bytes(self, token: int, previous: int | None) -> bytes:
        if self._decoder.joins_with_space and previous is not None:
            return b" " + self.token_bytes(token)
        return super().text_bytes(token, previous)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def id_to_token(self, token: int) -> str | None:
        return self._backend.id_to_token(token) if token >= 0 else None

    def model_file(self) -> tuple[str, bytes]:
        """Name and content of the file that holds this vocabulary; what is put around a text is written into it."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        around = [self.id_to_token(token) for token in (*self.prefix_ids, *self.suffix_ids)]
        if around:
            names = [f"{name}:0" for name in around]
            single = [*names[: len(self.prefix_ids)], "$A:0", *names[len(self.prefix_ids) :]]
            special = [(name, self.token_to_id(name)) for name in dict.fromkeys(around) if name is not None]
            template = processors.TemplateProcessing(single=single, special_tokens=special)
            # A byte-level step that only trims offsets changes no ids, so it is not missed. Typed by the wrong class in the stubs.
            backend.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
        return "tokenizer.json", backend.to_str(pretty=True).encode("utf-8")

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _drops_leading_space(self, previous: int | None) -> bool:
        return previous is None and self._decoder.strips_first_space

    def _affixes(self, config: TokenizerConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the post-processor puts around a text, and where the configuration overrules it."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        extra = len(full) - len(bare)
        # A vocabulary that can't spell "a" gives no ids: then all that is put around it counts as prefix.
        start = next((i for i in range(extra + 1) if bare and full[i : i + len(bare)] == bare), extra)
        prefix, suffix = tuple(full[:start]), tuple(full[start + len(bare) :])
        if config.add_bos is not None:
            prefix = () if not config.add_bos or self.bos_id is None else (self.bos_id,)
        if config.add_eos is not None:
            main_eos = None if self.eos_token is None else self.token_to_id(self.eos_token)
            suffix = () if not config.add_eos or main_eos is None else (main_eos,)
        return prefix, suffix


class _Decoder:
    """Bytes of one piece, read off the backend's decoder.

    The library decodes whole sequences only, and replaces a byte that is not UTF-8 at once; a stream needs the bytes.
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str):
        steps = _decoder_steps(backend)
        kinds = [step["type"] for step in steps]
        self.byte_level = "ByteLevel" in kinds
        self.byte_fallback = "ByteFallback" in kinds
        self.joins_with_space = not steps
        self.strips_first_space = False
        self.replacements: list[tuple[str, str]] = []
        for step in steps:
            pattern = step.get("pattern", {}).get("String")
            if step["type"] == "Replace" and pattern is not None:
                self.replacements.append((pattern, step["content"]))
            elif step["type"] == "Metaspace":
                self.replacements.append((step["replacement"], " "))
                self.strips_first_space |= step.get("prepend_scheme", "always") != "never"
            elif step["type"] == "Strip" and step["content"] == " " and step["stop"] == 0 and step["start"] <= 1:
                self.strips_first_space |= step["start"] == 1
            elif step["type"] not in ("ByteLevel", "ByteFallback", "Fuse"):
                raise CheckpointError(f"{source}: decoder step {json.dumps(step)} is not supported; known: {_DECODERS}")

    def piece_bytes(self, piece: str, special: bool) -> bytes:
        if special:
            return piece.encode("utf-8")
        if self.byte_level:
            mapped = [_BYTE_OF_CHAR.get(char) for char in piece]
            # An added token may hold characters that stand for no byte: then it is plain text.
            return piece.encode("utf-8") if None in mapped else bytes(byte for byte in mapped if byte is not None)
        if self.byte_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        return piece.encode("utf-8")


def _decoder_steps(backend: tokenizers.Tokenizer) -> list[dict]:
    if backend.decoder is None:
        return []
    spec = json.loads(backend.decoder.__getstate__())
    return spec["decoders"] if spec["type"] == "Sequence" else [spec]


def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: Latin-1's printable ones stand for themselves, the others, in order,
    for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_of_char()


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: TokenizerConfig, source: str) -> None:
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    for token in config.added_tokens:
        if token.content not in present:
            added = tokenizers.AddedToken(
                token.content,
                special=token.special,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
                normalized=False,
            )
            _ = backend.add_special_tokens([added]) if token.special else backend.add_tokens([added])
        found = backend.token_to_id(token.content)
        if token.token_id is not None and found != token.token_id:
            raise CheckpointError(
                f"{source} gives {token.content!r} the id {found}, tokenizer_config.json expects {token.token_id}"
            )


def load_hf_tokenizer(directory: Path) -> HfTokenizer:
    """The tokenizer of a directory with a tokenizer.json.

    Raises:
        CheckpointError: a file is missing or damaged; the message names it.
    """
    path = directory / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise CheckpointError(f"{path} can't be read as a tokenizer: {error}") from None
    # tokenizer.json itself says what is put around a text; transformers 5 ignores add_bos_token beside it, so we do.
    config = replace(read_tokenizer_config(directory), add_bos=None, add_eos=None)
    return HfTokenizer(backend, config, str(path))
