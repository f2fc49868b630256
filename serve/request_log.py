"""One line in the log per request."""

import logging

from serve.options import ServerOptions

log = logging.getLogger(__name__)


def log_prompt(options: ServerOptions, request_id: str, text: str, tokens: int) -> None:
    """Log a prompt at level INFO, cut to ``max_log_len`` characters."""
    if not log.isEnabledFor(logging.INFO):
        return
    most = options.max_log_len
    cut = text if most is None or len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
    shown = "" if most == 0 else f": {cut!r}"
    log.info("%s: %d prompt tokens%s", request_id, tokens, shown)
