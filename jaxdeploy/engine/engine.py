"""The engine: requests in, outputs out, one step at a time. Not thread-safe; ``EngineRunner`` gives it a thread."""

import random
from dataclasses import replace

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.generation import MAX_LOGIT_BIAS
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.engine.executor import Executor, LaunchedStep
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.ngram_drafter import NgramDrafter
from jaxdeploy.engine.page_allocator import PageAllocator
from jaxdeploy.engine.prefix_index import prefix_salt
from jaxdeploy.engine.request import Output, Request, Sequence, TokenLogprobs
from jaxdeploy.engine.scheduler import PlannedRow, Scheduler, StepLimits
from jaxdeploy.engine.step_programs import Progress, StepPrograms
from jaxdeploy.errors import PromptTooLongError, RequestError
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.sampler import Sampled
from jaxdeploy.sampling.slots import MAX_STOP_IDS, SlotOptions
from jaxdeploy.text.detokenizer import IncrementalDetokenizer
from jaxdeploy.text.stop_strings import StopStrings
from jaxdeploy.text.tokenizer import Tokenizer


class Engine:
    """Continuous batching over one model on one device.

    Args:
        config, params: the model; weights already on the device, in ``limits.dtype``.
        tokenizer: turns tokens into text and knows the end tokens.
        options: see EngineConfig.
        limits: the options resolved for this model and device.
        extra_end_ids: tokens that end an answer besides the model's own (a chat template's).
        programs: compiled already, while the weights were loaded.
        progress: told about the compilation of the buckets.

    Attributes:
        drafted_tokens, accepted_tokens: guessed so far, and how many were right.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict,
        tokenizer: Tokenizer,
        options: EngineConfig,
        limits: Limits,
        *,
        extra_end_ids: tuple[int, ...] = (),
        programs: StepPrograms | None = None,
        progress: Progress | None = None,
    ):
        self.config, self.tokenizer, self.options, self.limits = config, tokenizer, options, limits
        self.end_ids = frozenset((*config.eos_token_ids, *tokenizer.eos_ids, *extra_end_ids))
        self.executor = Executor(Decoder(config, limits.dtype), params, options, limits, programs)
        self.allocator = PageAllocator(self.executor.memory.num_pages)
        step_limits = StepLimits(
            batch_size=limits.batch_size,
            prefill_tokens=limits.prefill_tokens,
            mixed_tokens=limits.mixed_tokens,
            page_size=limits.page_size,
            prefix_caching=options.enable_prefix_caching,
            draft_tokens=options.num_speculative_tokens,
        )
        self.scheduler = Scheduler(self.allocator, step_limits)
        self._in_flight: dict[str, list[Sequence]] = {}
        self._launched: LaunchedStep | None = None
        self.drafted_tokens = self.accepted_tokens = 0
        self._seeds = random.Random(options.seed)
        self.executor.warm_up(progress)

    @property
    def memory(self):
        """MemoryPlan: what weights, pages and steps take."""
        return self.executor.memory

    @property
    def session_len(self) -> int:
        """Most tokens of a request, prompt and answer: what was asked for, or what the pool holds if that is less."""
        return min(self.limits.session_len, self.memory.tokens)

    @property
    def has_work(self) -> bool:
        """True while any answer is unfinished."""
        return self.scheduler.has_work or self._launched is not None

    def check(self, request: Request) -> None:
        """Refuse a request that could never run; safe to call from any thread.

        Raises:
            PromptTooLongError: prompt plus one token is longer than ``session_len``.
            RequestError: token ids outside of the vocabulary, or too many of them in one option.
        """
        config, vocabulary = request.config, self.config.vocab_size
        if not request.prompt_ids:
            raise RequestError("the prompt has no tokens; give at least one", param="prompt")
        if len(request.prompt_ids) >= self.session_len:
            raise PromptTooLongError(
                f"the prompt has {len(request.prompt_ids)} tokens; with at least one new token it must fit the context of "
                f"{self.session_len} tokens",
                param="prompt",
            )
        named = {"prompt": request.prompt_ids, "logit_bias": config.logit_bias, "bad_token_ids": config.bad_token_ids}
        for param, ids in {**named, "stop_token_ids": config.stop_token_ids}.items():
            wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
            if wrong is not None:
                raise RequestError(
                    f"token id {wrong} in {param} is outside of the vocabulary of {vocabulary}", param=param
                )
        if len({*config.logit_bias, *config.bad_token_ids}) > MAX_LOGIT_BIAS:
            raise RequestError(f"logit_bias and bad tokens name more than {MAX_LOGIT_BIAS} tokens", param="logit_bias")
        if len(self.end_ids.union(config.stop_token_ids)) > MAX_STOP_IDS:
            most = MAX_STOP_IDS - len(self.end_ids)
            raise RequestError(f"stop_token_ids names more than {most} tokens", param="stop_token_ids")

    def submit(self, request: Request) -> None:
        """Queue a request; its outputs come from ``step``.

        Raises:
            RequestError: see ``check``; also an id that is in flight.
        """
        self.check(request)
        if request.id in self._in_flight:
            raise RequestError(f"request id {request.id!r} is in flight already; choose another")
        request.base_seed = self._seeds.getrandbits(32)
        sequences = [self._sequence(request, index) for index in range(request.config.n)]
        self._in_flight[request.id] = sequences
        for sequence in sequences:
            self.scheduler.add(sequence)

    def abort(self, request_id: str) -> list[Output]:
        """End a request now and free what it holds. Unknown ids (it may have just finished) give no outputs."""
        outputs = []
        for sequence in self._in_flight.pop(request_id, ()):
            if sequence.finish_reason is None:
                sequence.finish_reason = "abort"
                self.scheduler.finish(sequence)
                outputs.append(_output(sequence, ""))
        self._forget_idle_step()
        return outputs

    def is_in_flight(self, request_id: str) -> bool:
        """True until the last answer of a request ended."""
        return request_id in self._in_flight

    def unfinished(self) -> dict[str, list[int]]:
        """Request id to the indices of its answers that have not ended."""
        return {
            request_id: [sequence.index for sequence in sequences if sequence.finish_reason is None]
            for request_id, sequences in self._in_flight.items()
        }

    def step(self) -> list[Output]:
        """Launch the next step, then read the one before it, which ran meanwhile; returns what that one made.

        The device gets its next step before anybody looks at the last one's tokens, so it never waits for the host. The price: an
        answer that ends by its text or an end token is in the next step already; what that makes of it is dropped. Answers under a
        grammar skip every other step instead, and alone they run step by step.
        """
        plan, admitted = self.scheduler.plan()
        for sequence in admitted:
            self._admit(sequence)
        failed: list[Output] = []
        launched = None
        if plan is not None:
            # Each constraint computes its mask on a thread of its own since its last token, so this seldom waits.
            problems = {row.sequence: problem for row in plan.rows if (problem := self._set_mask(row)) is not None}
            # A row whose grammar failed runs all the same: other rows may share the pages that it fills.
            launched = self.executor.launch(plan)
            failed = [self._fail(sequence, problem) for sequence, problem in problems.items()]
        return failed + self._read(launched)

    def drain(self) -> list[Output]:
        """Read the step that runs, if there is one, without launching another."""
        return self._read(None)

    def _sequence(self, request: Request, index: int) -> Sequence:
        config, prompt_len = request.config, len(request.prompt_ids)
        longest = self.session_len if config.max_new_tokens is None else prompt_len + config.max_new_tokens
        reach = min(longest, self.session_len)
        end_ids = frozenset(config.stop_token_ids) if config.ignore_eos else self.end_ids.union(config.stop_token_ids)
        extent = Extent.of(config, grammar=request.constraint is not None)
        first_seed = request.base_seed if config.random_seed is None else config.random_seed
        return Sequence(
            request=request,
            index=index,
            token_ids=list(request.prompt_ids),
            prompt_len=prompt_len,
            rope_length=reach,
            max_tokens=reach,
            seed=first_seed + index,
            end_ids=end_ids,
            detokenizer=IncrementalDetokenizer(self.tokenizer, request.prompt_ids, config.skip_special_tokens),
            stops=StopStrings(config.stop_words, config.include_stop_str_in_output) if config.stop_words else None,
            constraint=request.constraint() if request.constraint else None,
            extent=extent,
            drafter=NgramDrafter() if self.options.num_speculative_tokens and extent < Extent.ALL else None,
            salt=prefix_salt(self.config.rope, reach, quant_policy=self.options.quant_policy),
        )

    def _admit(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        stop_ids = tuple(sorted(sequence.end_ids))
        config = sequence.request.config
        options = SlotOptions.of(config, seed=sequence.seed, stop_ids=stop_ids)
        self.executor.admit(sequence.slot, options)
        if config.has_penalties:
            self.executor.count(sequence.slot, sequence.token_ids, sequence.prompt_len)

    def _set_mask(self, row: PlannedRow) -> RequestError | None:
        """Hold the row's next token to its grammar, if it has one; returns what is wrong with the grammar."""
        sequence = row.sequence
        if not row.samples or sequence.constraint is None or sequence.slot is None:
            return None
        try:
            self.executor.set_mask(sequence.slot, sequence.constraint.mask())
        except RequestError as problem:
            return problem
        return None

    def _fail(self, sequence: Sequence, problem: RequestError) -> Output:
        sequence.finish_reason = "error"
        self.scheduler.finish(sequence)
        self._forget(sequence)
        return replace(_output(sequence, ""), error=str(problem))

    def _read(self, launched: LaunchedStep | None) -> list[Output]:
        """What the step before this one made."""
        before, self._launched = self._launched, launched
        if before is None:
            return []
        sampled = self.executor.read(before)
        tokens = sampled.tokens.tolist()
        outputs, place = [], 0
        for row in before.plan.rows:
            if row.samples and row.sequence.finish_reason is None:
                outputs.append(self._advance(row, tokens[place : place + row.places], sampled, place))
            place += row.places
        self._forget_idle_step()
        return outputs

    def _advance(self, row: PlannedRow, tokens: list[int], sampled: Sampled, place: int) -> Output:
        sequence, tokens = row.sequence, row.stands(tokens)
        sequence.pending -= 1
        self._judge(row, len(tokens))
        text, taken = "", 0
        while taken < len(tokens) and sequence.finish_reason is None:
            text += sequence.append(tokens[taken])
            taken += 1
        if sequence.finish_reason is not None:
            self.scheduler.finish(sequence)
            self._forget(sequence)
        wanted = sequence.request.config.logprobs
        logprobs = () if wanted is None else (_logprobs(tokens[0], wanted, sampled, place),)
        return _output(sequence, text, tuple(tokens[:taken]), logprobs)

    def _judge(self, row: PlannedRow, right: int) -> None:
        """Learn from what became of a draft."""
        drafter, length = row.sequence.drafter, len(row.sequence.token_ids)
        if row.draft:
            self.scheduler.settle(row, right)
            self.drafted_tokens += len(row.draft)
            self.accepted_tokens += right - 1
        if drafter is not None and drafter.is_active(length):
            drafter.judge(len(row.draft), right - 1, length)

    def _forget_idle_step(self) -> None:
        """A step whose answers have all ended need not be read."""
        if not self.scheduler.has_work:
            self._launched = None

    def _forget(self, sequence: Sequence) -> None:
        siblings = self._in_flight.get(sequence.request.id, [])
        if all(sibling.finish_reason for sibling in siblings):
            self._in_flight.pop(sequence.request.id, None)


def _logprobs(token: int, wanted: int, sampled: Sampled, i: int) -> TokenLogprobs:
    top = zip(sampled.top_tokens[i, :wanted].tolist(), sampled.top_logprobs[i, :wanted].tolist(), strict=True)
    return TokenLogprobs(token, float(sampled.logprobs[i]), tuple(top))


def _output(
    sequence: Sequence, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[TokenLogprobs, ...] = ()
) -> Output:
    return Output(
        request_id=sequence.request.id,
        index=sequence.index,
        text=text,
        token_ids=tokens,
        logprobs=logprobs,
        finish_reason=sequence.finish_reason,
        input_tokens=sequence.prompt_len,
        output_tokens=sequence.made,
        cached_tokens=sequence.cached_tokens or 0,
    )
