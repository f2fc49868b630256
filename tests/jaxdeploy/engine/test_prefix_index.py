"""Pages found by what they hold, exactly; and which of them stay when nobody holds them."""

from hypothesis import given
from hypothesis import strategies as st

from jaxdeploy.config.rope import RopeConfig
from jaxdeploy.engine.page_allocator import PageAllocator
from jaxdeploy.engine.prefix_index import PrefixIndex, prefix_salt

SIZE = 4


def publish(index: PrefixIndex, salt, tokens: list[int], pages: list[int]) -> None:
    chain = salt
    for number, page in enumerate(pages):
        chain = index.add(chain, tokens[number * SIZE : (number + 1) * SIZE], page)


def test_a_page_is_found_behind_the_same_tokens_only():
    index = PrefixIndex()
    publish(index, "salt", [1, 1, 1, 1, 2, 2, 2, 2], [10, 11])
    assert index.match("salt", [1, 1, 1, 1, 2, 2, 2, 2, 3], SIZE, 2)[0] == [10, 11]
    assert index.match("salt", [1, 1, 1, 1, 2, 2, 2, 2, 3], SIZE, 1)[0] == [10]
    assert index.match("salt", [1, 1, 1, 1, 2, 2, 2, 3], SIZE, 2)[0] == [10]
    assert index.match("salt", [2, 2, 2, 2], SIZE, 1)[0] == [], "the same tokens elsewhere are another page"
    assert index.match("other salt", [1, 1, 1, 1], SIZE, 1)[0] == []


def test_equal_hashes_are_no_match():
    index = PrefixIndex()
    publish(index, "salt", [-1, 5, 5, 5], [10])
    assert hash((-1, 5, 5, 5)) == hash((-2, 5, 5, 5)), "CPython hashes -1 and -2 alike"
    assert index.match("salt", [-2, 5, 5, 5], SIZE, 1)[0] == []


def test_the_first_of_two_equal_pages_is_found_and_both_chains_go_on_together():
    index = PrefixIndex()
    publish(index, "salt", [1, 1, 1, 1, 2, 2, 2, 2], [10, 11])
    publish(index, "salt", [1, 1, 1, 1, 3, 3, 3, 3], [20, 21])
    assert 20 not in index
    assert index.match("salt", [1, 1, 1, 1, 3, 3, 3, 3], SIZE, 2)[0] == [10, 21]


def test_nothing_is_found_behind_a_forgotten_page_even_when_it_comes_back():
    index = PrefixIndex()
    tokens = [1, 1, 1, 1, 2, 2, 2, 2]
    publish(index, "salt", tokens, [10, 11])
    index.forget(10)
    assert index.match("salt", tokens, SIZE, 2)[0] == []
    publish(index, "salt", tokens[:SIZE], [10])
    assert index.match("salt", tokens, SIZE, 2)[0] == [10], "page 11 belonged to the page that is gone"


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=20), min_size=1, max_size=20))
def test_what_is_found_is_what_was_published(texts):
    index, held, next_page = PrefixIndex(), {}, 0
    for text in texts:
        full = len(text) // SIZE
        pages, chain = index.match("salt", text, SIZE, full)
        for number, page in enumerate(pages):
            assert held[page] == text[: (number + 1) * SIZE]
        for number in range(len(pages), full):
            held[next_page] = text[: (number + 1) * SIZE]
            chain = index.add(chain, text[number * SIZE : (number + 1) * SIZE], next_page)
            next_page += 1
        assert index.match("salt", text, SIZE, full)[0][len(pages) :] == list(
            range(next_page - full + len(pages), next_page)
        )


def test_released_pages_are_kept_and_the_oldest_goes_first():
    allocator = PageAllocator(4)
    pages = allocator.allocate(3)
    assert pages == [0, 1, 2]
    publish(allocator.index, "salt", [1] * 12, pages)
    allocator.release(pages)
    assert (allocator.used_pages, allocator.free_pages, len(allocator.index)) == (0, 4, 3)
    assert allocator.allocate(1) == [3], "a page without content is taken first"
    assert allocator.allocate(1) == [2], "then the end of what was let go"
    found, _ = allocator.index.match("salt", [1] * 12, SIZE, 3)
    assert found == [0, 1]
    allocator.share(found)
    assert allocator.allocate(1) is None
    allocator.share(found[:1])
    allocator.release(found)
    assert allocator.used_pages == 3, "page 0 is held once more"
    assert allocator.allocate(1) == [1]
    assert allocator.index.match("salt", [1] * 12, SIZE, 3)[0] == [0]


def test_requests_with_other_frequencies_have_another_salt():
    def salts(rope: RopeConfig) -> list:
        return [prefix_salt(rope, length, quant_policy=0) for length in (50, 100, 101, 102)]

    assert len(set(salts(RopeConfig()))) == 1
    dynamic = salts(RopeConfig("dynamic", factor=2.0, original_max_position=100))
    assert dynamic[0] == dynamic[1]
    assert len(set(dynamic)) == 3, "beyond the original context each length has a base of its own"
    longrope = salts(RopeConfig("longrope", original_max_position=100))
    assert longrope[0] == longrope[1] != longrope[2] == longrope[3]
    plain = RopeConfig()
    assert len({prefix_salt(plain, 9, quant_policy=q, adapter=a) for q in (0, 8, 4) for a in (0, 1)}) == 6
