"""Requests of every kind, as a crowd of clients would mix them; the same seed makes the same ones."""

import json
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.request import Request
from jaxdeploy.grammar.compiler import GrammarCompiler
from jaxdeploy.grammar.spec import GrammarSpec

STEMS = 12
REPEATABLE = 64
"""Requests remembered to be asked again."""
STOP_WORDS = ("e", "th", "ab", "\n", " a ", "zzz")
_PATTERN = "[a-f]{2,9}[0-9]"
_CHOICES = ["yes", "no", "perhaps not"]
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "size": {"enum": [1, 20, 300]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
GRAMMARS: dict[str, tuple[GrammarSpec, Callable[[str], bool]]] = {
    "schema": (GrammarSpec.json_schema(_SCHEMA), lambda text: set(json.loads(text)) == {"name", "size"}),
    "object": (GrammarSpec.json_object(), lambda text: isinstance(json.loads(text), dict)),
    "regex": (GrammarSpec.regex(_PATTERN), lambda text: re.fullmatch(_PATTERN, text) is not None),
    "choice": (GrammarSpec.choice(_CHOICES), lambda text: text in _CHOICES),
}
"""A grammar, and whether a whole answer follows it."""


@dataclass
class Case:
    """One request and what its client does.

    Attributes:
        grammar: of GRAMMARS; None leaves the answer free.
        abort_after: the client goes away when this many outputs have come; 0 before the first, None never.
        repeats: id of the same request, asked before.
    """

    request: Request
    grammar: str | None = None
    abort_after: int | None = None
    repeats: str | None = None


@dataclass
class Fuzzer:
    """Makes the requests of one run.

    Args:
        vocabulary: prompts are made of tokens below this.
        session_len: most tokens of a request.
        most_new: most tokens of an answer, but for one in ten that is longer and one in fifty that runs to the end of the context.
        grammars: compiles them for the model.
    """

    vocabulary: int
    session_len: int
    most_new: int
    grammars: GrammarCompiler
    seed: int = 0
    _made: int = 0
    _known: deque[Case] = field(default_factory=lambda: deque(maxlen=REPEATABLE))

    def __post_init__(self):
        """Prompts begin with a few stems, so that many share pages."""
        self.rng = np.random.RandomState(self.seed)
        self._stems = [self._tokens(self.session_len // 2) for _ in range(STEMS)]

    def case(self) -> Case:
        """The next request."""
        rng, name = self.rng, str(self._made)
        self._made += 1
        abort_after = rng.geometric(0.2) - 1 if self._chance(0.1) else None
        if self._known and self._chance(0.15):
            known = self._known[rng.randint(len(self._known))]
            return replace(
                known, request=replace(known.request, id=name), abort_after=abort_after, repeats=known.request.id
            )
        grammar = list(GRAMMARS)[rng.randint(len(GRAMMARS))] if self._chance(0.15) else None
        config = self._config(grammar)
        constraint = self.grammars.compile(GRAMMARS[grammar][0]) if grammar else None
        case = Case(Request(name, self._prompt(), config, constraint=constraint), grammar, abort_after)
        if abort_after is None and (config.greedy or config.random_seed is not None):
            self._known.append(case)
        return case

    def broken(self) -> Request:
        """One that must be refused."""
        prompts = ([], [self.vocabulary + 10**7], self._tokens(self.session_len))
        return Request("broken", prompts[self.rng.randint(len(prompts))], GenerationConfig(max_new_tokens=1))

    def _prompt(self) -> list[int]:
        rng, longest = self.rng, self.session_len - 1
        kind = rng.randint(4)
        if kind == 0:  # many short ones, few long ones
            return self._tokens(int(longest ** rng.uniform(0, 1)))
        if kind == 1:  # repeats itself: drafts are often right
            return (self._tokens(rng.randint(1, 9)) * longest)[: rng.randint(4, longest)]
        stem = self._stems[rng.randint(STEMS)]
        return (stem[: rng.randint(1, len(stem) + 1)] + self._tokens(rng.randint(1, 20)))[:longest]

    def _config(self, grammar: str | None) -> GenerationConfig:
        rng, chance = self.rng, self._chance
        free = grammar is None  # a grammar says itself which tokens may come and where the answer ends
        return GenerationConfig(
            n=rng.choice([1, 1, 1, 1, 2, 3]).item(),
            max_new_tokens=None if chance(0.02) else rng.randint(1, (4 if chance(0.1) else 1) * self.most_new + 1),
            min_new_tokens=rng.randint(4) if free and chance(0.2) else 0,
            do_sample=chance(0.6),
            temperature=rng.choice([0.0, 0.7, 1.0, 2.0]).item(),
            top_k=rng.choice([0, 1, 5, 50]).item(),
            top_p=rng.choice([1.0, 1.0, 0.8]).item(),
            min_p=rng.choice([0.0, 0.0, 0.1]).item(),
            repetition_penalty=rng.choice([1.0, 1.0, 1.0, 1.3]).item(),
            presence_penalty=rng.choice([0.0, 0.0, 0.0, 1.5]).item(),
            frequency_penalty=rng.choice([0.0, 0.0, 0.0, -0.5]).item(),
            logit_bias={token: rng.uniform(-5, 5) for token in self._some(0.1, 8)},
            bad_token_ids=self._some(0.1, 8) if free else (),
            stop_words=tuple(rng.choice(STOP_WORDS, rng.randint(1, 3), replace=False)) if chance(0.25) else (),
            stop_token_ids=self._some(0.1, 3),
            ignore_eos=free and chance(0.5),
            include_stop_str_in_output=chance(0.3),
            skip_special_tokens=chance(0.8),
            random_seed=rng.randint(2**31) if chance(0.5) else None,
            logprobs=rng.choice([0, 1, 5, 20]).item() if chance(0.2) else None,
        )

    def _some(self, share: float, most: int) -> tuple[int, ...]:
        return tuple(self._tokens(self.rng.randint(1, most + 1))) if self._chance(share) else ()

    def _tokens(self, count: int) -> list[int]:
        return self.rng.randint(0, self.vocabulary, max(count, 1)).tolist()

    def _chance(self, share: float) -> bool:
        return bool(self.rng.uniform() < share)
