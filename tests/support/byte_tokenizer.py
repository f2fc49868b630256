"""A tokenizer without training: a token per byte, some longer pieces, and special tokens."""

from collections.abc import Iterable

from jaxdeploy.text.tokenizer import Tokenizer

PIECES = (
    b'{"',
    b'": ',
    b'", "',
    b'"}',
    b"}\n",
    b"</",
    b'": {"',
    b" the",
    b"name",
    b"\n\n",
    "é".encode(),
    b"true",
    b"12",
)
EOS, END_OF_TURN = "<eos>", "<|im_end|>"


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes, then ``pieces``, then ``<eos>`` and ``<|im_end|>`` (both end an answer), then ``tags``.

    Args:
        tags: added tokens without the special flag: they are not left out of the text.
        pieces: tokens of several bytes.
    """

    def __init__(self, tags: Iterable[str] = (), pieces: Iterable[bytes] = PIECES):
        self._texts = [bytes([i]) for i in range(256)] + list(pieces)
        self.special_tokens = {}
        for name in (EOS, END_OF_TURN, *tags):
            self.special_tokens[name] = len(self._texts)
            self._texts.append(name.encode())
        self.vocab_size = len(self._texts)
        self.eos_ids = (self.special_tokens[EOS], self.special_tokens[END_OF_TURN])
        self.special_ids = frozenset(self.eos_ids)
        self.bos_id = self.bos_token = self.chat_template = None
        self.eos_token = EOS
        self.prefix_ids = self.suffix_ids = ()

    def token_bytes(self, token: int) -> bytes:
        return self._texts[token] if 0 <= token < self.vocab_size else b""

    def token_to_id(self, token: str) -> int | None:
        return self.special_tokens.get(token)

    def id_to_token(self, token: int) -> str | None:
        return self._texts[token].decode("latin-1") if 0 <= token < self.vocab_size else None

    def _encode(self, text: str) -> list[int]:
        """The longest token at each place."""
        data, ids = text.encode(), []
        while data:
            fits = [i for i, piece in enumerate(self._texts) if data.startswith(piece)]
            ids.append(max(fits, key=lambda i: len(self._texts[i])))
            data = data[len(self._texts[ids[-1]]) :]
        return ids

    def _drops_leading_space(self, previous: int | None) -> bool:
        return False
