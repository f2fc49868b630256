"""Every error that jaxdeploy raises on purpose.

JaxdeployError
├── UserError                  what the caller can mend; the HTTP server answers 4xx
│   ├── RequestError           a bad prompt, sampling option or message (``param`` names the field)
│   │   └── PromptTooLongError the prompt does not fit the context
│   ├── ConfigError            a bad engine or model option
│   ├── CheckpointError        a wrong, truncated or unsupported checkpoint
│   └── MemoryBudgetError      the model or its KV cache does not fit the device
└── EngineError                the engine cannot go on; the HTTP server answers 5xx
    └── EngineStoppedError     the engine was shut down while the request ran
"""


class JaxdeployError(Exception):
    """Root of the tree."""


class UserError(JaxdeployError, ValueError):
    """The caller passed something that can't work; the message names the value and the way out."""


class RequestError(UserError):
    """A request that can't be served.

    Args:
        message: what is wrong, the value included, and what would be right.
        param: name of the offending field, as the caller spelled it; None if no single field is to blame.
    """

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class PromptTooLongError(RequestError):
    """The prompt (plus one new token) is longer than the context."""


class ConfigError(UserError):
    """An engine, model or command-line option that can't work."""


class CheckpointError(UserError):
    """A checkpoint that is missing, truncated, inconsistent or of a kind that is not supported."""


class MemoryBudgetError(UserError):
    """Weights, step buffers or the smallest useful KV cache do not fit the device's memory."""


class EngineError(JaxdeployError):
    """The engine failed; requests in flight end with this error."""


class EngineStoppedError(EngineError):
    """The engine was shut down before the request finished."""
