"""Tokenizers that come as a sentencepiece model: InternLM2, InternLM3, the first Llama and Mistral models.

InternLM2's own tokenizer class is code in the checkpoint; this module does what that class does, without running it.
"""

import re
from pathlib import Path

import sentencepiece

from jaxdeploy.errors import CheckpointError
from jaxdeploy.text.sentencepiece_proto import without_dummy_prefix
from jaxdeploy.text.tokenizer import Tokenizer
from jaxdeploy.text.tokenizer_config import AddedToken, TokenizerConfig, read_tokenizer_config

_SPACE = "▁"  # how sentencepiece writes a space


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with added tokens, which are split out of a text before the model sees it.

    An added token may take over the id of a piece (InternLM2's ``<|im_start|>`` sits on ``[UNUSED_TOKEN_146]``).
    Where the model puts a space in front of a text, every stretch between added tokens gets one, unless the
    configuration says ``legacy: false``: then only the first. Decoding takes the same spaces away.

    Args:
        model: bytes of the model file.
        config: what the files beside it say; BOS is added unless it says no.
        source: name of the model file, for messages.

    Raises:
        CheckpointError: the bytes are not a sentencepiece model, or two added tokens claim one id.
    """

    def __init__(self, model: bytes, config: TokenizerConfig, source: str):
        self._first = _processor(model, source)
        self._adds_space = self._first.encode("a", out_type=str)[0].startswith(_SPACE)
        self._legacy = config.legacy
        splits_differ = self._adds_space and not config.legacy
        self._later = _processor(without_dummy_prefix(model), source) if splits_differ else self._first

        named = TokenizerConfig(
            bos_token=config.bos_token or self._piece_name(self._first.bos_id()),
            eos_token=config.eos_token or self._piece_name(self._first.eos_id()),
            generation_eos_ids=config.generation_eos_ids,
            chat_template=config.chat_template,
        )
        added = self._place(config, source)
        self._added_ids = {token.content: token_id for token, token_id in added}
        self._added_names = {token_id: token.content for token, token_id in added}
        self._pattern = _added_pattern([token for token, _ in added])
        self.vocab_size = max([self._first.get_piece_size(), *(token_id + 1 for token_id in self._added_names)])
        self._set_special(named, {token.content: (token_id, token.special) for token, token_id in added})
        self._bytes = [self._bytes_of(token) for token in range(self.vocab_size)]
        add_bos = config.add_bos is not False and self.bos_id is not None
        self.prefix_ids = (self.bos_id,) if add_bos and self.bos_id is not None else ()
        self.suffix_ids = self.eos_ids[:1] if config.add_eos else ()

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if 0 <= token < self.vocab_size else b""

    def token_to_id(self, token: str) -> int | None:
        added = self._added_ids.get(token)
        if added is not None:
            return added
        piece = self._first.piece_to_id(token)
        # An unknown piece maps to <unk>, and a piece whose id an added token took over is gone.
        return piece if self.id_to_token(piece) == token else None

    def id_to_token(self, token: int) -> str | None:
        if token in self._added_names:
            return self._added_names[token]
        return self._first.id_to_piece(token) if 0 <= token < self._first.get_piece_size() else None

    def model_file(self) -> tuple[str, bytes]:
        """Name and content of the file that holds this vocabulary."""
        return "tokenizer.model", self._first.serialized_model_proto()

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            ids += self._encode_stretch(text[start : match.start()], start)
            content = match.group()
            ids.append(self._added_ids[content] if content in self._added_ids else self._added_ids[content.strip()])
            start = match.end()
        return ids + self._encode_stretch(text[start:], start)

    def _encode_stretch(self, text: str, start: int) -> list[int]:
        if not text:
            return []
        return (self._first if start == 0 else self._later).encode(text)

    def _drops_leading_space(self, previous: int | None) -> bool:
        if not self._adds_space:
            return False
        return previous is None or (self._legacy and previous in self._added_names)

    def _bytes_of(self, token: int) -> bytes:
        piece = self.id_to_token(token)
        if piece is None or token in self._added_names:
            return (piece or "").encode("utf-8")
        if self._first.is_byte(token):
            return bytes.fromhex(piece[3:5])
        return piece.replace(_SPACE, " ").encode("utf-8")

    def _piece_name(self, token: int) -> str | None:
        return self._first.id_to_piece(token) if token >= 0 else None

    def _place(self, config: TokenizerConfig, source: str) -> list[tuple[AddedToken, int]]:
        """Gives every added token its id: the configured one, its piece's, or the next free one."""
        model = self._first
        size = model.get_piece_size()
        free = max([size, *(token.token_id + 1 for token in config.added_tokens if token.token_id is not None)])
        placed: dict[int, AddedToken] = {}
        for token in config.added_tokens:
            token_id = token.token_id
            if token_id is None:
                piece = model.piece_to_id(token.content)
                token_id = piece if model.id_to_piece(piece) == token.content else free
                free += token_id == free
            if token_id in placed:
                raise CheckpointError(
                    f"{source}: id {token_id} is claimed by {placed[token_id].content!r} and {token.content!r}"
                )
            placed[token_id] = token
        for token_id in range(size):
            # A control piece never matches in a text by itself; but `<s>` written in a prompt must be BOS.
            if (model.is_control(token_id) or model.is_unknown(token_id)) and token_id not in placed:
                placed[token_id] = AddedToken(model.id_to_piece(token_id), token_id)
        return [(token, token_id) for token_id, token in placed.items()]


def _processor(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{source} is not a sentencepiece model: {error}") from None


def _added_pattern(tokens: list[AddedToken]) -> re.Pattern[str] | None:
    """Matches any added token, the longest first."""
    if not tokens:
        return None
    ways = []
    for token in sorted(tokens, key=lambda token: -len(token.content)):
        way = re.escape(token.content)
        if token.single_word:
            way = rf"(?<!\w){way}(?!\w)"
        ways.append((r"\s*" if token.lstrip else "") + way + (r"\s*" if token.rstrip else ""))
    return re.compile("|".join(ways))


def load_sentencepiece_tokenizer(directory: Path) -> SentencePieceTokenizer:
    """The tokenizer of a directory with a sentencepiece ``tokenizer.model``.

    Raises:
        CheckpointError: a file is missing or damaged; the message names it.
    """
    path = directory / "tokenizer.model"
    try:
        model = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}") from None
    return SentencePieceTokenizer(model, read_tokenizer_config(directory), str(path))
