"""What every answer must be like, checked as it comes."""

import math
import time
from array import array
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from engine_bench.fuzz import GRAMMARS, REPEATABLE, Case
from jaxdeploy.engine.request import Output

KEPT_ANSWERS = 8 * REPEATABLE


@dataclass
class Answer:
    """One answer so far."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: int = 0
    last: float = 0.0
    reason: str | None = None


@dataclass
class OpenRequest:
    """A request whose answers have not all ended."""

    case: Case
    submitted: float
    answers: list[Answer]
    outputs: int = 0
    aborted: bool = False


@dataclass
class Ledger:
    """Follows requests from submission to their end. It keeps nothing of those that ended but times and the latest tokens.

    Args:
        end_ids: tokens that end an answer unless it ignores them.
        session_len: most tokens of a request.

    Attributes:
        open: requests in flight, by id.
        problems: what was wrong, in words, the first hundred.
        reasons: how answers ended, and how often.
        ttft, itl: seconds to the first token and between tokens of different steps.
        compared, different: answers to a request asked before, and how many of them had other tokens.
    """

    end_ids: frozenset[int]
    session_len: int
    open: dict[str, OpenRequest] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    ttft: "array[float]" = field(default_factory=lambda: array("d"))
    itl: "array[float]" = field(default_factory=lambda: array("d"))
    tokens: int = 0
    cached: int = 0
    compared: int = 0
    different: int = 0
    _known: OrderedDict[str, list[tuple[list[int], str | None]]] = field(default_factory=OrderedDict)

    def submitted(self, case: Case) -> None:
        """A request is on its way."""
        answers = [Answer() for _ in range(case.request.config.n)]
        self.open[case.request.id] = OpenRequest(case, time.perf_counter(), answers)

    def take(self, outputs: list[Output]) -> list[str]:
        """What one step made; returns the ids of the requests whose clients go away now."""
        now, leaving = time.perf_counter(), []
        for output in outputs:
            entry = self.open.get(output.request_id)
            if entry is None:
                self._wrong(output.request_id, f"output after its end: {output}")
                continue
            self._add(entry, output, now)
            entry.outputs += 1
            case = entry.case
            if all(answer.reason for answer in entry.answers):
                del self.open[output.request_id]
                self._ended(entry)
            elif case.abort_after is not None and entry.outputs >= case.abort_after and not entry.aborted:
                leaving.append(output.request_id)
                entry.aborted = True
        return leaving

    def _add(self, entry: OpenRequest, output: Output, now: float) -> None:
        request, answer = entry.case.request, entry.answers[output.index]
        config = request.config
        if answer.reason is not None:
            self._wrong(request.id, f"output after {answer.reason!r}: {output}")
        if output.token_ids:
            (self.itl if answer.tokens else self.ttft).append(now - (answer.last or entry.submitted))
            answer.last = now
        answer.tokens += output.token_ids
        answer.text += output.text
        answer.reason = output.finish_reason
        self.tokens += len(output.token_ids)
        if (output.input_tokens, output.output_tokens) != (len(request.prompt_ids), len(answer.tokens)):
            self._wrong(request.id, f"counts {output.input_tokens} + {output.output_tokens} are not its tokens'")
        wanted = len(output.token_ids) if config.logprobs is not None else 0
        if len(output.logprobs) != wanted:
            self._wrong(request.id, f"{len(output.logprobs)} log-probabilities of {wanted} tokens")
        for token, entry_logprobs in zip(output.token_ids, output.logprobs, strict=False):
            values = [value for _, value in entry_logprobs.top]
            good = (
                entry_logprobs.token == token
                and entry_logprobs.logprob < 1e-3
                and not math.isnan(entry_logprobs.logprob)
            )
            if not good or len(values) != config.logprobs or values != sorted(values, reverse=True):
                self._wrong(
                    request.id, f"log-probabilities {entry_logprobs} of token {token}, {config.logprobs} asked for"
                )
        if output.finish_reason is not None:
            self.reasons[output.finish_reason] += 1
            if output.finish_reason != "abort":
                self.cached += output.cached_tokens
            self._check(entry, answer, output)

    def _check(self, entry: OpenRequest, answer: Answer, output: Output) -> None:
        """The end of an answer is what its options allow."""
        request, config = entry.case.request, entry.case.request.config
        room = self.session_len - len(request.prompt_ids)
        most = room if config.max_new_tokens is None else min(config.max_new_tokens, room)
        ends = frozenset(config.stop_token_ids) | (frozenset() if config.ignore_eos else self.end_ids)
        by_token = bool(answer.tokens) and answer.tokens[-1] in ends
        tell = lambda text: self._wrong(request.id, f"{text}; {answer}, {config}, {entry.case.grammar=}")  # noqa: E731
        if len(answer.tokens) > most:
            tell(f"{len(answer.tokens)} tokens where {most} are allowed")
        if bad := set(answer.tokens) & set(config.bad_token_ids):
            tell(f"bad tokens {bad}")
        if early := [
            place for place, t in enumerate(answer.tokens[:-1]) if t in ends and place >= config.min_new_tokens
        ]:
            tell(f"went on after an end token, at {early}")
        match output.finish_reason:
            case "abort":
                if not entry.aborted:
                    tell("nobody aborted it")
            case "length":
                if len(answer.tokens) != most:
                    tell(f"'length' after {len(answer.tokens)} of {most} tokens")
            case "stop":
                if not by_token and not config.stop_words:
                    tell("'stop' without an end")
                found = any(answer.text.endswith(word) for word in config.stop_words)
                if not by_token and config.include_stop_str_in_output and not found:
                    tell("'stop' without the stop text")
                if by_token and entry.case.grammar and not config.stop_token_ids and not config.stop_words:
                    self._check_grammar(entry.case.grammar, answer.text, tell)
            case reason:
                tell(f"ended by {reason!r}: {output.error}")
        if config.stop_words and not config.min_new_tokens:
            body = answer.text[:-1] if config.include_stop_str_in_output else answer.text
            if any(word in body for word in config.stop_words):
                tell("text goes on after a stop text")

    def _check_grammar(self, grammar: str, text: str, tell) -> None:
        try:
            # Prompts of random bytes may end within a character, which the answer's text then begins with.
            good = GRAMMARS[grammar][1](text.lstrip("\N{REPLACEMENT CHARACTER}"))
        except ValueError:
            good = False
        if not good:
            tell(f"{text!r} does not follow its grammar")

    def _ended(self, entry: OpenRequest) -> None:
        case = entry.case
        if entry.aborted:
            return
        made = [(answer.tokens, answer.reason) for answer in entry.answers]
        if case.repeats is None:
            self._known[case.request.id] = made
            while len(self._known) > KEPT_ANSWERS:
                self._known.popitem(last=False)
        elif case.repeats in self._known:
            self.compared += 1
            self.different += made != self._known[case.repeats]

    def _wrong(self, request_id: str, problem: str) -> None:
        if len(self.problems) < 100:
            self.problems.append(f"request {request_id}: {problem}")
