"""A tokenizer without training, so that random weights say something: tokens are bytes, one ends an answer."""

from jaxdeploy.text.tokenizer import Tokenizer

BYTES = 256
END = "<end>"


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes, 256 is ``<end>``; the rest of the vocabulary are unused special tokens."""

    bos_id = bos_token = chat_template = None
    eos_token = END
    eos_ids = (BYTES,)
    prefix_ids = suffix_ids = ()

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.special_tokens = {END: BYTES} | {f"<unused {i}>": i for i in range(BYTES + 1, vocab_size)}
        self.special_ids = frozenset(self.special_tokens.values())
        self._names = {token: name for name, token in self.special_tokens.items()}

    def token_bytes(self, token: int) -> bytes:
        """The byte, or a special token's name."""
        return bytes([token]) if token < BYTES else self._names[token].encode()

    def token_to_id(self, token: str) -> int | None:
        """Special tokens and ASCII characters have names."""
        return self.special_tokens.get(token, ord(token) if len(token) == 1 and token.isascii() else None)

    def id_to_token(self, token: int) -> str | None:
        """The name of a special token, or the byte in Latin 1."""
        return self._names.get(token, chr(token))

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _drops_leading_space(self, previous: int | None) -> bool:
        return False
