"""Options of the HTTP server, with LMDeploy's names and defaults where it has them."""

from dataclasses import dataclass

from jaxdeploy.errors import ConfigError

LOG_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server listens, whom it lets in and how it treats requests.

    Attributes:
        server_name, server_port: address to listen on.
        model_name: what clients call the model; None is the loaded model's own name.
        api_keys: who has one of these is let in; empty lets everybody in.
        ssl_keyfile, ssl_certfile: PEM files for TLS; both or none.
        allow_origins: web pages of these origins may call the server (CORS); ``*`` is any.
        max_queue: answers that may wait beyond the ones that fit one batch; more get 429.
        max_log_len: characters of a prompt that are logged (at level INFO); None logs all, 0 none.
        log_level: one of LOG_LEVELS.
        generation_config: where sampling defaults come from: "auto" (the model's generation_config.json), "none", or
            the path of such a file.
        drain_seconds: how long SIGTERM waits for running answers.
        max_body_bytes: longer request bodies get 413.
        body_seconds: a body must have arrived after this time, or the request gets 408.
        tool_call_parser: name of a tool-call format, "none" for a model without; None chooses it from the model.
        reasoning_parser: "think" parts ``<think>`` blocks from answers, "none" doesn't, None chooses it from the model.
    """

    server_name: str = "0.0.0.0"
    server_port: int = 23333
    model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    allow_origins: tuple[str, ...] = ("*",)
    max_queue: int = 1024
    max_log_len: int | None = None
    log_level: str = "WARNING"
    generation_config: str = "auto"
    drain_seconds: float = 30.0
    max_body_bytes: int = 32 * MIB
    body_seconds: float = 30.0
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None

    def __post_init__(self):
        """Refuse what can't work, before anything is loaded."""
        if not 0 <= self.server_port <= 65535:
            raise ConfigError(f"server_port={self.server_port} must be in [0, 65535]; 0 takes a free one")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ConfigError("TLS needs both ssl_keyfile and ssl_certfile")
        if any(not key for key in self.api_keys):
            raise ConfigError("an API key is an empty text, which would let everybody in; leave it out")
        if self.log_level.upper() not in LOG_LEVELS:
            raise ConfigError(f"log_level={self.log_level!r} must be one of {LOG_LEVELS}")
        if self.reasoning_parser not in (None, "think", "none"):
            raise ConfigError(f"reasoning_parser={self.reasoning_parser!r} must be 'think' or 'none'")
        for name in ("max_queue", "drain_seconds"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0")
        for name in ("max_body_bytes", "body_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        if self.max_log_len is not None and self.max_log_len < 0:
            raise ConfigError(f"max_log_len={self.max_log_len} must be at least 0")
