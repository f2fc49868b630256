"""Which pages of the pool are free, held by sequences, or kept for what they hold."""

from collections import OrderedDict
from collections.abc import Sequence

from jaxdeploy.engine.prefix_index import PrefixIndex


class PageAllocator:
    """Hands out page numbers 0..num_pages-1. All or nothing: a sequence never gets part of what it asked for.

    Several sequences may hold a page whose content ``index`` knows. When the last one lets go, the page stays as it is
    until room is needed; then the one that was let go first is taken.
    """

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self.index = PrefixIndex()
        self._free = list(range(num_pages - 1, -1, -1))  # taken from the end, so page 0 goes first
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by nobody, content known; the oldest first
        self._holders = [0] * num_pages

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds, kept ones included."""
        return len(self._free) + len(self._kept)

    @property
    def empty_pages(self) -> int:
        """Pages that nobody holds and whose content is of no use to anybody."""
        return len(self._free)

    @property
    def used_pages(self) -> int:
        """Pages that sequences hold."""
        return self.num_pages - self.free_pages

    def is_kept(self, page: int) -> bool:
        """True if nobody holds the page but its content is known."""
        return page in self._kept

    def allocate(self, count: int) -> list[int] | None:
        """``count`` pages of unknown content, or None if fewer are free."""
        if count > self.free_pages:
            return None
        return [self._take() for _ in range(count)]

    def share(self, pages: list[int]) -> None:
        """Hold pages that the index knows, for one sequence more."""
        for page in pages:
            self._kept.pop(page, None)
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Let a sequence's pages go, in its order; they may be handed out again at once."""
        # The last page first: without the pages before it nobody finds it, so it must go before them.
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self.index:
                self._kept[page] = None
            else:
                self._free.append(page)

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._kept.popitem(last=False)
            self.index.forget(page)
        self._holders[page] = 1
        return page
