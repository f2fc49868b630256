"""The sampling options that chat and text completions share, and their way into a GenerationConfig."""

from typing import Annotated, Any

from pydantic import Field

from jaxdeploy.config.generation import MAX_LOGPROBS, GenerationConfig
from jaxdeploy.errors import RequestError
from serve.protocol.request_model import Count, PositiveCount, RequestModel, Share, TokenId

MAX_ANSWERS = 128
"""OpenAI's limit of n."""
PARAM_NAMES = {
    "stop_words": "stop",
    "random_seed": "seed",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
}
"""Fields of GenerationConfig by their names in requests."""

Temperature = Annotated[float, Field(ge=0, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]
Bias = Annotated[float, Field(ge=-100, le=100)]
StopText = Annotated[str, Field(min_length=1)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class StreamOptions(RequestModel):
    """Options of a stream."""

    include_usage: bool | None = None


class SamplingRequest(RequestModel):
    """Fields of a request that generates text. What is absent takes the server's default.

    The lower block is not OpenAI's; vLLM and LMDeploy spell these fields the same.
    """

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: PositiveCount | None = None
    stop: StopText | list[StopText] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: int | None = None
    logit_bias: dict[str, Bias] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    user: str | None = None

    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: RepetitionPenalty | None = None
    min_tokens: Count | None = None
    min_new_tokens: Count | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def generation_config(
    request: SamplingRequest,
    defaults: dict[str, Any],
    *,
    max_new_tokens: int | None,
    logprobs: int | None,
    skip_special_tokens: bool,
    extra_stops: tuple[str, ...] = (),
) -> GenerationConfig:
    """What the engine is told. Order of precedence: the request, the model's defaults, temperature 1 and nothing cut off.

    Args:
        request: the options asked for.
        defaults: from the model's generation_config.json.
        max_new_tokens: None runs to the end of the context.
        logprobs: alternatives per token; None reports none.
        skip_special_tokens: leave special tokens out of the text.
        extra_stops: texts that end the answer besides the request's.

    Raises:
        RequestError: an option that can't work.
    """
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    top_k = _first(request.top_k, defaults.get("top_k"), 0)
    return GenerationConfig(
        n=request.n or 1,
        max_new_tokens=max_new_tokens,
        min_new_tokens=_first(request.min_tokens, request.min_new_tokens, 0),
        do_sample=True,
        temperature=_first(request.temperature, defaults.get("temperature"), 1.0),
        top_k=max(top_k, 0),  # -1 is off in other servers
        top_p=_first(request.top_p, defaults.get("top_p"), 1.0),
        min_p=_first(request.min_p, defaults.get("min_p"), 0.0),
        repetition_penalty=_first(request.repetition_penalty, defaults.get("repetition_penalty"), 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=_logit_bias(request.logit_bias or {}),
        stop_words=(*stops, *extra_stops),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        skip_special_tokens=skip_special_tokens,
        random_seed=request.seed,
        logprobs=logprobs,
    )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _logit_bias(bias: dict[str, float]) -> dict[int, float]:
    result = {}
    for token, value in bias.items():
        if not token.isdecimal() or len(token) > 10:
            raise RequestError(f"logit_bias key {token[:40]!r} must be a token id, such as '1234'", param="logit_bias")
        result[int(token)] = value
    return result
