"""Which pages of the pool are free."""


class PageAllocator:
    """Hands out page numbers 0..num_pages-1. All or nothing: a sequence never gets part of what it asked for."""

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # taken from the end, so page 0 goes first

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def used_pages(self) -> int:
        """Pages that sequences hold."""
        return self.num_pages - len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """``count`` pages, or None if fewer are free."""
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def release(self, pages: list[int]) -> None:
        """Give pages back; they may be handed out again at once."""
        self._free.extend(reversed(pages))
