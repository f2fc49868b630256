"""Which sequences run in the next step, and on which pages. Pure Python; knows no arrays."""

from array import array
from collections import deque
from dataclasses import dataclass
from itertools import islice

from jaxdeploy.engine.page_allocator import PageAllocator
from jaxdeploy.engine.request import Sequence

LOOK_AHEAD = 64
"""Waiting requests that are looked through for short prompts, each step."""
FED_FOR_EACH = 4
"""Tokens of a mixed step for each answer that goes on, its own included."""
PLENTY = 2
"""Empty pages for each answer of a full batch, from which on pages are handed out before they are needed."""


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """``count`` tokens of one sequence, from number ``start`` on.

    Attributes:
        samples: this feeds the sequence's last token, so the step chooses the next one.
        made: tokens that its answer has before that one.
        draft: guessed tokens, the last ones of the row: the step also chooses what would follow each of them.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    made: int
    draft: tuple[int, ...] = ()

    @property
    def places(self) -> int:
        """At how many of its tokens the row samples, were it to."""
        return 1 + len(self.draft)

    def stands(self, sampled: list[int]) -> list[int]:
        """What is right of the tokens sampled at the row's places: all up to the first that the draft did not guess."""
        right = 0
        while right < len(self.draft) and self.draft[right] == sampled[right]:
            right += 1
        return sampled[: right + 1]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The rows of one step.

    Attributes:
        rows: answers that go on first, then chunks of prompts.
        decode: each row has a single token.
    """

    rows: list[PlannedRow]
    decode: bool


@dataclass(frozen=True, slots=True)
class StepLimits:
    """How much one step may hold.

    Attributes:
        batch_size: sequences at once.
        prefill_tokens: tokens of a step with chunks of prompts or drafts; more than answers can take.
        mixed_tokens: tokens of such a step in which answers go on, too. It is what they are slowed down by.
        draft_tokens: guessed tokens of a row.
    """

    batch_size: int
    prefill_tokens: int
    mixed_tokens: int
    page_size: int
    prefix_caching: bool = True
    draft_tokens: int = 0


class Scheduler:
    """Continuous batching with chunked prefill and preemption.

    Every answer that can go on is in every step; what room is left goes to prompts, chunk by chunk, so neither waits for the other.
    Sequences are admitted first come, first served, when a slot and the pages for all their tokens are free. But while a prompt
    takes several steps, those that fit into one may pass it and take up to half of each: their first token waits neither for it
    nor for other long ones behind it, and it goes on at half speed at worst. When answers run out of pages, the sequence admitted
    last gives all of its pages back and waits at the head of the queue; its cache is computed anew later (same tokens, same text).

    A plan may be made while the step before it still runs: sequences then have tokens that nobody knows yet (``pending``). Only
    those go on whose next step does not depend on them (``Sequence.can_go_on``).

    A step with a new page must be uploaded, which others need not (``DeviceInputs``). So while pages abound, rows that get near the
    end of theirs are given the next one together, once in many steps; what they have not begun they give back when it is needed.

    Full pages are shared by sequences that begin alike. A page is published when the step that fills it is planned: steps run in
    order, and each writes all of its keys and values before any of its rows attends, so even rows of that very step may read it.

    Attributes:
        preemptions: how often a sequence lost its pages.
        prefix_queried_tokens, prefix_hit_tokens: prompt tokens looked up in the prefix index, and found there.
    """

    def __init__(self, allocator: PageAllocator, limits: StepLimits):
        self.allocator = allocator
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queried_tokens = self.prefix_hit_tokens = 0
        self._free_slots = list(range(limits.batch_size - 1, -1, -1))

    @property
    def has_work(self) -> bool:
        """True while any sequence is unfinished."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def plan(self) -> tuple[StepPlan | None, list[Sequence]]:
        """The next step (None if nothing can run) and the sequences it admits, which need their slots set up first."""
        self._make_room()
        rows = [
            self._row(sequence, 1, self._draft(sequence))
            for sequence in self.running
            if sequence.can_go_on and not sequence.prefilling
        ]
        chunks, admitted = self._chunks(sum(row.count for row in rows))
        if not rows and not chunks:
            return None, admitted
        return StepPlan(rows + chunks, decode=all(row.count == 1 for row in rows) and not chunks), admitted

    def settle(self, row: PlannedRow, right: int) -> None:
        """Take back what a row with a draft fed beyond its first ``right`` tokens. Their places are written anew."""
        if row.sequence.slot is not None:  # else it was preempted and starts anew anyway
            row.sequence.computed = row.start + right

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free what it holds."""
        if sequence.slot is None:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self._release(sequence)

    def _make_room(self) -> None:
        """See that every answer that goes on has a page for its next token; answers may have to give way."""
        going = [s for s in self.running if s.can_go_on and not s.prefilling]
        short = [s for s in going if s.computed == len(s.pages) * self.limits.page_size]
        for sequence in short:
            # No slot: preempted by an earlier sequence of this very loop.
            while sequence.slot is not None and not self._extend(sequence):
                if not self._take_back(1):
                    self._preempt(self.running[-1])
        if short:
            self._provide([s for s in going if s.slot is not None])

    def _extend(self, sequence: Sequence) -> bool:
        page = self.allocator.allocate(1)
        sequence.pages.extend(page or ())
        return page is not None

    def _provide(self, going: list[Sequence]) -> None:
        """Give those that are near the end of their pages the next one already, if many are left that hold nothing of use."""
        size = self.limits.page_size
        for sequence in going:
            if self.allocator.empty_pages <= PLENTY * self.limits.batch_size:
                return
            held = len(sequence.pages) * size
            if held - sequence.computed <= size // 2 and held < sequence.max_tokens:
                self._extend(sequence)

    def _take_back(self, missing: int) -> bool:
        """Free the pages that answers hold and don't need yet, if there are so many; False if not."""
        size = self.limits.page_size
        needed = [max(s.computed, s.prefill_target) // size + 1 for s in self.running]
        if sum(max(len(s.pages) - count, 0) for s, count in zip(self.running, needed, strict=True)) < missing:
            return False
        for sequence, count in zip(self.running, needed, strict=True):
            self.allocator.release(sequence.pages[count:])
            del sequence.pages[count:]
        return True

    def _chunks(self, decoding: int) -> tuple[list[PlannedRow], list[Sequence]]:
        """Chunks of prompts beside ``decoding`` tokens of answers, and the sequences admitted for them."""
        limits, rows, admitted = self.limits, [], []
        # Where many answers go on, prompts get a multiple of what they do, or new answers would not keep up with those that end.
        most = (
            min(limits.prefill_tokens, max(limits.mixed_tokens, FED_FOR_EACH * decoding))
            if decoding
            else limits.prefill_tokens
        )
        budget = whole = most - decoding
        long: Sequence | None = None

        def add(sequence: Sequence, room: int) -> int:
            nonlocal budget
            rows.append(self._row(sequence, min(room, _left(sequence))))
            budget -= rows[-1].count
            return room - rows[-1].count

        prefilling = [sequence for sequence in self.running if sequence.prefilling]
        for sequence in prefilling:
            if _left(sequence) <= budget:
                add(sequence, budget)
            elif budget:
                long = sequence
                break
        while long is None and budget and self.waiting and self._admit(self.waiting[0]):
            admitted.append(self.waiting.popleft())
            if _left(admitted[-1]) <= budget:
                add(admitted[-1], budget)
            else:
                long = admitted[-1]
        if long is None:
            return rows, admitted
        spare = budget // 2
        started = {long, *(row.sequence for row in rows)}
        for sequence in prefilling:
            if spare and sequence not in started and _left(sequence) <= whole:
                spare = add(sequence, spare)
        for sequence in [s for s in islice(self.waiting, LOOK_AHEAD) if len(s.token_ids) <= whole]:
            if not spare or not self._admit(sequence):
                break
            self.waiting.remove(sequence)
            admitted.append(sequence)
            spare = add(sequence, spare)
        add(long, budget)
        return rows, admitted

    def _draft(self, sequence: Sequence) -> tuple[int, ...]:
        """Guesses to check in the sequence's next row. There are pages for them, or there are none."""
        length, size = len(sequence.token_ids), self.limits.page_size
        most = min(self.limits.draft_tokens, sequence.max_tokens - length - 1)
        if sequence.drafter is None or sequence.pending or most < 1 or not sequence.drafter.is_active(length):
            return ()
        draft = sequence.drafter.propose(sequence.token_ids, most)
        missing = -(-(length + len(draft)) // size) - len(sequence.pages)
        pages = self.allocator.allocate(missing) if missing > 0 else []
        if pages is None:
            return ()
        sequence.pages.extend(pages)
        return draft

    def _row(self, sequence: Sequence, count: int, draft: tuple[int, ...] = ()) -> PlannedRow:
        start, reached = sequence.computed, sequence.reached
        sequence.computed += count
        samples = sequence.computed == reached
        sequence.computed += len(draft)
        self._publish(sequence)
        sequence.pending += samples
        return PlannedRow(sequence, start, count + len(draft), samples, reached - sequence.prompt_len, draft)

    def _admit(self, sequence: Sequence) -> bool:
        if not self._free_slots or sequence.pending:  # pending: preempted a moment ago
            return False
        size, length = self.limits.page_size, len(sequence.token_ids)
        shared, chain = [], sequence.salt
        if self.limits.prefix_caching:
            # The last token is always fed: its hidden state is what the next one is sampled from.
            shared, chain = self.allocator.index.match(sequence.salt, sequence.token_ids, size, (length - 1) // size)
        needed = -(-length // size) - len(shared)
        # One page to spare while others run, or the next decode step would throw this one out again.
        wanted = needed + sum(map(self.allocator.is_kept, shared)) + bool(self.running)
        missing = wanted - self.allocator.free_pages
        if missing > 0 and not self._take_back(missing):
            return False
        self.allocator.share(shared)
        sequence.pages = array("i", shared + (self.allocator.allocate(needed) or []))
        sequence.slot = self._free_slots.pop()
        sequence.computed, sequence.prefill_target = len(shared) * size, length
        sequence.published, sequence.chain = len(shared), chain
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            self.prefix_queried_tokens += length if self.limits.prefix_caching else 0
            self.prefix_hit_tokens += sequence.computed
        self.running.append(sequence)
        return True

    def _publish(self, sequence: Sequence) -> None:
        """Tell the prefix index about pages that are full of known tokens."""
        size = self.limits.page_size
        full = min(sequence.computed, len(sequence.token_ids)) // size if self.limits.prefix_caching else 0
        for number in range(sequence.published, full):
            tokens = sequence.token_ids[number * size : (number + 1) * size]
            sequence.chain = self.allocator.index.add(sequence.chain, tokens, sequence.pages[number])
        sequence.published = max(sequence.published, full)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.computed = 0
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._publish(sequence)
        self.allocator.release(sequence.pages)
        self._free_slots.append(sequence.slot)
        sequence.pages, sequence.slot = array("i"), None


def _left(sequence: Sequence) -> int:
    """Tokens to feed before its next token can be sampled."""
    return sequence.prefill_target - sequence.computed
