"""Writing the few parts of sentencepiece's model file (a protocol buffer) that we need.

Field numbers are those of sentencepiece's `sentencepiece_model.proto`. Two serialized messages put one after the
other are a valid message again (repeated fields are appended, single ones overwritten): so a loaded model is changed.
"""

import struct
from collections.abc import Iterable
from enum import IntEnum

_VARINT, _BYTES, _FLOAT = 0, 2, 5  # wire types
_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC = 1, 2, 3  # fields of ModelProto
_BPE = 2  # TrainerSpec.ModelType


class PieceType(IntEnum):
    """Kinds of a vocabulary entry; GGUF's ``tokenizer.ggml.token_type`` uses the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def encode_pieces(pieces: Iterable[tuple[str, float, PieceType]]) -> bytes:
    """Vocabulary entries (text, score, type), to be appended to a model."""
    return b"".join(
        _message(_PIECES, _text(1, piece) + _key(2, _FLOAT) + struct.pack("<f", score) + _number(3, kind))
        for piece, score, kind in pieces
    )


def encode_bpe_model(
    pieces: list[tuple[str, float, PieceType]], *, add_dummy_prefix: bool, remove_extra_whitespaces: bool
) -> bytes:
    """A whole BPE model with byte fallback and no normalization but that of spaces.

    Args:
        pieces: text, score and type of each id.
        add_dummy_prefix: a space is put in front of a text.
        remove_extra_whitespaces: several spaces count as one.
    """
    has_bytes = any(kind == PieceType.BYTE for _, _, kind in pieces)
    trainer = _number(3, _BPE) + _number(35, has_bytes)
    normalizer = _text(1, "identity") + _number(3, add_dummy_prefix) + _number(4, remove_extra_whitespaces)
    return encode_pieces(pieces) + _message(_TRAINER_SPEC, trainer) + _message(_NORMALIZER_SPEC, normalizer)


def without_dummy_prefix(model: bytes) -> bytes:
    """The same model, which puts no space in front of a text."""
    return model + _message(_NORMALIZER_SPEC, _number(3, False))


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(int(value))


def _message(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode("utf-8"))
