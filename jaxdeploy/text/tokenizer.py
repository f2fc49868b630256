"""What the engine needs of a tokenizer, whatever file it came from."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from jaxdeploy.errors import CheckpointError, RequestError
from jaxdeploy.text.tokenizer_config import TokenizerConfig


class Tokenizer(ABC):
    """Text to token ids and back.

    Decoding is defined token by token, in bytes (``text_bytes``): the text of a sequence is the concatenation of the
    bytes of its tokens, read as UTF-8 with U+FFFD for what is not. So decoding piece by piece gives exactly what
    decoding at once gives. ``clean_up_tokenization_spaces`` is ignored, as transformers 5 does for these
    vocabularies: it would change code and quoted text that the model wrote on purpose.

    Attributes:
        vocab_size: one more than the largest token id (the model's embedding may be padded beyond it).
        bos_id, bos_token: the token at the start of a text; None if the model has none.
        eos_token: the main token that ends a text; None if there is none.
        eos_ids: every id that ends a generation, the main one first.
        special_ids: ids that ``decode(skip_special=True)`` leaves out.
        special_tokens: content to id of every added token, special or not.
        prefix_ids, suffix_ids: what ``encode(add_special=True)`` puts around a text.
        chat_template: the checkpoint's own jinja source, or None.
    """

    vocab_size: int
    bos_id: int | None
    bos_token: str | None
    eos_token: str | None
    eos_ids: tuple[int, ...]
    special_ids: frozenset[int]
    special_tokens: dict[str, int]
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    chat_template: str | None

    def _set_special(self, config: TokenizerConfig, added: dict[str, tuple[int, bool]]) -> None:
        """Fills the attributes above that follow from the configuration and the added tokens (id, is special)."""
        self.special_tokens = {content: token for content, (token, _) in added.items()}
        self.special_ids = frozenset(token for token, special in added.values() if special)
        self.bos_token, self.eos_token = config.bos_token, config.eos_token
        self.bos_id = None if config.bos_token is None else self.token_to_id(config.bos_token)
        main_eos = None if config.eos_token is None else self.token_to_id(config.eos_token)
        ends = () if main_eos is None else (main_eos,)
        self.eos_ids = tuple(dict.fromkeys(ends + config.generation_eos_ids))
        self.chat_template = config.chat_template

    @property
    def adds_bos(self) -> bool:
        """Whether ``encode(add_special=True)`` puts BOS in front."""
        return self.bos_id is not None and self.prefix_ids[:1] == (self.bos_id,)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of a text; the strings of added tokens inside the text become those tokens.

        Args:
            text: any Unicode text.
            add_special: put BOS / EOS around it where this tokenizer does so by default.

        Raises:
            RequestError: the text holds a lone surrogate, which no UTF-8 text has.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"text is not valid Unicode: lone surrogate {text[error.start]!r} at character {error.start}; remove it"
            ) from None
        ids = self._encode(text)
        return [*self.prefix_ids, *ids, *self.suffix_ids] if add_special else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids. Ids that name no token give no text; bytes that are not UTF-8 give U+FFFD."""
        text = bytearray()
        previous = None
        for token in ids:
            if skip_special and token in self.special_ids:
                continue
            text += self.text_bytes(token, previous)
            previous = token
        return text.decode("utf-8", errors="replace")

    def text_bytes(self, token: int, previous: int | None) -> bytes:
        """Bytes that ``token`` adds to a text after ``previous`` (None: the text starts here).

        Args:
            token: the id.
            previous: the last id before it whose text was kept.
        """
        text = self.token_bytes(token)
        if text[:1] == b" " and self._drops_leading_space(previous):
            return text[1:]
        return text

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Bytes of a token in the middle of a text; a special token gives its own name, an unused id nothing."""

    @abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it (an added token by its content), None if there is none."""

    @abstractmethod
    def id_to_token(self, token: int) -> str | None:
        """The vocabulary's own spelling of an id, None if no token has it."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of a valid text, nothing put around it."""

    @abstractmethod
    def _drops_leading_space(self, previous: int | None) -> bool:
        """Whether a space at the start of a token's text, after ``previous``, is one that encoding had put there."""


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face checkpoint directory; no network, no code from the checkpoint.

    Args:
        directory: holds ``tokenizer.json``, or ``tokenizer.model`` (sentencepiece), and their configuration files.

    Raises:
        CheckpointError: neither file is there, or a file can't be read; the message names it.
    """
    # Imported here: both modules build on the class above.
    from jaxdeploy.text.hf_tokenizer import load_hf_tokenizer
    from jaxdeploy.text.sentencepiece_tokenizer import load_sentencepiece_tokenizer

    if (directory / "tokenizer.json").is_file():
        return load_hf_tokenizer(directory)
    if (directory / "tokenizer.model").is_file():
        return load_sentencepiece_tokenizer(directory)
    raise CheckpointError(f"{directory} has no tokenizer: expected tokenizer.json, or a sentencepiece tokenizer.model")
