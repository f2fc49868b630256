"""How tokens are chosen and when an answer ends, with LMDeploy's names and defaults."""

from dataclasses import dataclass, field

from jaxdeploy.errors import RequestError

MAX_LOGIT_BIAS = 512
"""Entries that logit_bias, bad tokens and end tokens of one request may take together (OpenAI allows 300 for logit_bias alone)."""
MAX_LOGPROBS = 20
"""Most alternatives per token whose log-probability is reported (OpenAI's limit)."""


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """Options of one request.

    Attributes:
        n: answers to one prompt.
        max_new_tokens: most tokens of an answer; None runs to the end of the context.
        min_new_tokens: no end token before this many.
        do_sample: False takes the most likely token, whatever the options below say (LMDeploy's default).
        temperature: divides the logits; 0 is greedy.
        top_k: sample among the k most likely; 0 is off.
        top_p: sample among the smallest set of tokens whose probability reaches p; 1 is off.
        min_p: drop tokens below this share of the most likely one's probability; 0 is off.
        repetition_penalty: above 1 discourages tokens of prompt and answer.
        presence_penalty, frequency_penalty: subtracted once, or per occurrence, for tokens of the answer.
        logit_bias: added to the logits of these token ids.
        bad_token_ids: never chosen. ``bad_words`` are texts; each must be a single token.
        stop_token_ids: end the answer, as the model's own end tokens do. ``stop_words`` are texts, found across token borders.
        ignore_eos: go on after the model's end tokens.
        include_stop_str_in_output: return the stop text too.
        skip_special_tokens: leave special tokens out of the text.
        random_seed: same seed, same request, same hardware: same tokens. Answer i of n uses seed + i.
        logprobs: report the log-probability (of the model's own distribution, before penalties and temperature) of each chosen
            token and of this many alternatives, at most 20; None reports none.
    """

    n: int = 1
    max_new_tokens: int | None = 512
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    bad_words: tuple[str, ...] = ()
    bad_token_ids: tuple[int, ...] = ()
    stop_words: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    random_seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self):
        """Refuse what no engine could do; the error's ``param`` is the field."""
        for name in ("bad_words", "bad_token_ids", "stop_words", "stop_token_ids"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value or ()))
        self._require(self.n >= 1, "n", "at least 1")
        self._require(self.max_new_tokens is None or self.max_new_tokens >= 1, "max_new_tokens", "at least 1")
        self._require(self.min_new_tokens >= 0, "min_new_tokens", "at least 0")
        self._require(self.temperature >= 0, "temperature", "at least 0")
        self._require(self.top_k >= 0, "top_k", "at least 0 (0 is off)")
        self._require(0 < self.top_p <= 1, "top_p", "in (0, 1]")
        self._require(0 <= self.min_p <= 1, "min_p", "in [0, 1]")
        self._require(self.repetition_penalty > 0, "repetition_penalty", "above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            self._require(-2 <= getattr(self, name) <= 2, name, "in [-2, 2]")
        self._require(
            self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", f"in [0, {MAX_LOGPROBS}]"
        )
        self._require(all(self.stop_words), "stop_words", "texts that are not empty")
        bias = len(self.logit_bias)
        self._require(bias <= MAX_LOGIT_BIAS, "logit_bias", f"at most {MAX_LOGIT_BIAS} entries, not {bias}")

    def _require(self, good: bool, name: str, rule: str) -> None:
        if not good:
            raise RequestError(f"{name}={getattr(self, name)!r} must be {rule}", param=name)

    @property
    def greedy(self) -> bool:
        """True if the most likely token is taken each time."""
        return not self.do_sample or self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        """True if the choice of a token depends on which ones came before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
