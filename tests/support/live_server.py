"""A real server process, as a user starts it, on the embedded demo model."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

START_SECONDS = 300
"""Loading and compiling the demo model takes 20 to 70 seconds on two cores."""
END_SECONDS = 60


class LiveServer:
    """``python -m jaxdeploy serve api_server`` on a free port; a context manager that ends it.

    Args:
        log: file that gets what the server prints.
        arguments: further ones of the command line.

    Attributes:
        address: ``http://host:port``.
        options: the further arguments.
        statuses: different things that ``/health`` said on the way, in order.
    """

    def __init__(self, log: Path, *arguments: str):
        self._log = log
        self.options = arguments
        self.statuses: list[str] = []
        command = [sys.executable, "-W", "error", "-m", "jaxdeploy", "serve", "api_server", *arguments]
        port = _free_port()
        self.address = f"http://127.0.0.1:{port}"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--server-name", "127.0.0.1", "--server-port", str(port)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )

    def __enter__(self) -> "LiveServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait_ready(self) -> None:
        """Return when ``/health`` says ready; ``statuses`` holds what it said before."""
        end = time.monotonic() + START_SECONDS
        while (status := self.health()) != "ready":
            if status is not None and status not in self.statuses[-1:]:
                self.statuses.append(status)
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server is not ready, its last status was {status!r}:\n{self.log}")
            time.sleep(0.1)

    def health(self) -> str | None:
        """What ``/health`` says; None while nothing listens."""
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=END_SECONDS) as answer:
                return json.load(answer)["status"]
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)["status"]
        except OSError:
            return None

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=END_SECONDS) as answer:
            found = re.search(rf"^jaxdeploy_{name} (\S+)$", answer.read().decode(), re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def wait_for_metric(self, name: str, value: float) -> None:
        """Return when a metric has this value."""
        end = time.monotonic() + END_SECONDS
        while (found := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} stays {found} instead of {value}"
            time.sleep(0.02)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def exit_status(self) -> int:
        """The status with which the process ends; waits for it."""
        return self.process.wait(END_SECONDS)

    @property
    def log(self) -> str:
        """What the server has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
