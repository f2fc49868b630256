"""A file mapped into memory, read one array at a time."""

import mmap
from pathlib import Path

import numpy as np

from jaxdeploy.errors import CheckpointError


class MappedFile:
    """Arrays as read-only views of a mapped file; only the pages of the latest array are kept resident.

    Args:
        path: an existing, non-empty file.

    Raises:
        CheckpointError: the file can't be opened or is empty.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
            raise CheckpointError(f"{path}: can't be read: {error}") from error
        self.size = len(self._map)
        self._resident = (0, 0)

    def array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A view of ``shape`` and ``dtype`` that starts ``offset`` bytes into the file.

        The pages of the array before it are given back to the system, so that a walk over a file of many GiB stays as
        small as its largest tensor. Older views stay valid: their pages are read again when they are touched.
        """
        view = np.ndarray(shape, dtype, buffer=self._map, offset=offset)
        self._release_resident()
        self._resident = (offset, offset + view.nbytes)
        return view

    def bytes_at(self, offset: int, length: int) -> bytes:
        """A copy of ``length`` bytes from ``offset``, fewer at the end of the file."""
        return self._map[offset : offset + length]

    def buffer(self) -> mmap.mmap:
        """The mapping itself, for ``struct.unpack_from``."""
        return self._map

    def _release_resident(self) -> None:
        start, end = self._resident
        start -= start % mmap.PAGESIZE
        # Read-only file pages: dropping them loses nothing. Not every system has the call.
        if end > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)
