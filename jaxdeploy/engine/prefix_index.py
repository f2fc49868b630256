"""Which page holds which tokens, so that requests with the same beginning share pages."""

from collections.abc import Hashable, Sequence
from itertools import count

from jaxdeploy.config.rope import RopeConfig

Chain = Hashable
"""What stands before a page: the number of the page before it, or a request's salt where there is none."""


class PrefixIndex:
    """Full pages by content, chained from the start of a text.

    A page is found by what stands before it and its own tokens. Both are compared exactly (a hash only leads there), and
    a page's number is never used twice, so two texts share a page only if all of their tokens up to its end are the same,
    under the same salt.
    """

    def __init__(self):
        self._by_content: dict[tuple[Chain, tuple[int, ...]], tuple[int, int]] = {}
        self._by_page: dict[int, tuple[Chain, tuple[int, ...]]] = {}
        self._numbers = count()

    def __contains__(self, page: int) -> bool:
        """True if the page's content can be found."""
        return page in self._by_page

    def __len__(self) -> int:
        """Pages that can be found."""
        return len(self._by_page)

    def match(self, salt: Chain, tokens: Sequence[int], page_size: int, most: int) -> tuple[list[int], Chain]:
        """The pages that hold the first tokens of a text, at most ``most`` of them, and what stands before the next one."""
        pages, chain = [], salt
        for start in range(0, most * page_size, page_size):
            found = self._by_content.get((chain, tuple(tokens[start : start + page_size])))
            if found is None:
                break
            page, chain = found
            pages.append(page)
        return pages, chain

    def add(self, chain: Chain, tokens: Sequence[int], page: int) -> Chain:
        """Note a full page, unless another one holds the same already; returns what stands before the next page."""
        content = (chain, tuple(tokens))
        found = self._by_content.get(content)
        if found is not None:
            return found[1]
        number = next(self._numbers)
        self._by_content[content] = (page, number)
        self._by_page[page] = content
        return number

    def forget(self, page: int) -> None:
        """The page gets new content. Pages that follow it can't be found any more; they age and go."""
        del self._by_content[self._by_page.pop(page)]


def prefix_salt(rope: RopeConfig, rope_length: int, *, quant_policy: int, adapter: int = 0) -> Chain:
    """What two requests must have in common, besides tokens, to share pages.

    Args:
        rope: of the model. Where frequencies depend on the length that a request can reach, so do the cached keys.
        rope_length: that length.
        quant_policy: how pages are stored.
        adapter: slot of the request's weights beside the model's own; 0 for none.
    """
    frequencies = 0
    if rope.kind == "dynamic":
        frequencies = max(rope_length, rope.original_max_position)
    elif rope.depends_on_length:
        frequencies = int(rope_length > rope.original_max_position)
    return ("start", frequencies, quant_policy, adapter)
