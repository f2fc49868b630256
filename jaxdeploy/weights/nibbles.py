"""Int4 values in bytes and in int32 words, and the order of columns in them."""

import numpy as np
from jaxtyping import Int32, UInt8

NIBBLES = 8  # int4 values in an int32 word


def pack_nibbles(q: UInt8[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "rows half_columns"]:
    """Two neighbours of a row (values 0..15, an even number of columns) in a byte, the first in the low nibble."""
    return q[:, 0::2] | (q[:, 1::2] << 4)


def unpack_nibbles(packed: UInt8[np.ndarray, "rows half_columns"]) -> UInt8[np.ndarray, "rows columns"]:
    """Undo ``pack_nibbles``."""
    q = np.empty((packed.shape[0], 2 * packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 0xF, out=q[:, 0::2])
    np.right_shift(packed, 4, out=q[:, 1::2])
    return q


def words_from_bytes(packed: UInt8[np.ndarray, "rows bytes"]) -> Int32[np.ndarray, "rows words"]:
    """Four bytes of a row as one int32, the first lowest: nibble i of the word (bits 4i..4i+3) is value 8c + i."""
    return np.ascontiguousarray(packed).view("<i4").astype(np.int32, copy=False)


def bytes_from_words(words: Int32[np.ndarray, "rows words"]) -> UInt8[np.ndarray, "rows bytes"]:
    """Undo ``words_from_bytes``; a view where the words are contiguous."""
    return np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)


def pack_words(q: UInt8[np.ndarray, "rows columns"]) -> Int32[np.ndarray, "rows words"]:
    """Eight neighbours of a row (values 0..15) in an int32, the first in the lowest nibble."""
    return words_from_bytes(pack_nibbles(q))


def unpack_words(words: Int32[np.ndarray, "rows words"]) -> UInt8[np.ndarray, "rows columns"]:
    """Undo ``pack_words``."""
    return unpack_nibbles(bytes_from_words(words))


def take_columns(
    packed: UInt8[np.ndarray, "N half_K"], perm: Int32[np.ndarray, " K"] | None
) -> UInt8[np.ndarray, "N half_K"]:
    """Packed nibbles whose column j is column ``perm[j]``; as they are if perm is None."""
    return packed if perm is None else pack_nibbles(unpack_nibbles(packed)[:, perm])


def restore_columns(
    packed: UInt8[np.ndarray, "N half_K"], perm: Int32[np.ndarray, " K"] | None
) -> UInt8[np.ndarray, "N half_K"]:
    """Undo ``take_columns``."""
    if perm is None:
        return packed
    q = np.empty((packed.shape[0], 2 * packed.shape[1]), np.uint8)
    q[:, perm] = unpack_nibbles(packed)
    return pack_nibbles(q)
