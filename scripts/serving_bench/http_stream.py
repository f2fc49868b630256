"""A client for event streams that costs little: the clock is read when bytes arrive, and nothing is parsed until later."""

import asyncio
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

READ_BYTES = 1 << 16
HEAD_BYTES = 1 << 16


@dataclass
class Answer:
    """One answer as it came over the wire.

    Attributes:
        status: of HTTP; 0 if the connection failed.
        start, end: ``time.perf_counter`` at the sending of the request and at its last byte.
        pieces: time of arrival and bytes of every piece of the body, chunk framing removed.
        error: what went wrong.
    """

    status: int = 0
    start: float = 0.0
    end: float = 0.0
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    error: str = ""

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(piece for _, piece in self.pieces)


class StreamClient:
    """Posts JSON to one server over as many kept-alive connections as are needed at a time.

    Args:
        base_url: ``http(s)://host[:port][/prefix]``.
        api_key: sent as a bearer token unless empty.
    """

    def __init__(self, base_url: str, api_key: str = ""):
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"{base_url=} must look like http://host:port/v1")
        self._host = url.hostname
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._port = url.port or (443 if self._tls else 80)
        self._prefix = url.path.rstrip("/")
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = f"Host: {url.netloc.rpartition('@')[2]}\r\nContent-Type: application/json\r\n{key}"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: Any) -> Answer:
        """Post ``body`` and read the answer to its end."""
        return await self._send("POST", path, json.dumps(body).encode())

    async def get(self, path: str) -> Answer:
        """Get a path."""
        return await self._send("GET", path, b"")

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in self._idle), return_exceptions=True)
        self._idle.clear()

    async def _send(self, method: str, path: str, body: bytes) -> Answer:
        answer = Answer(start=time.perf_counter())
        writer = None
        try:
            reader, writer = self._idle.pop() if self._idle else await self._connect()
            head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            reusable = await _read(reader, answer)
        except (OSError, EOFError, ValueError) as problem:
            answer.error, reusable = f"{type(problem).__name__}: {problem}", False
        answer.end = time.perf_counter()
        if writer is not None:
            if reusable:
                self._idle.append((reader, writer))
            else:
                writer.close()
        if answer.status != 200 and not answer.error:
            answer.error = f"HTTP {answer.status}: {answer.body[:300].decode(errors='replace')}"
        return answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=HEAD_BYTES)


async def _read(reader: asyncio.StreamReader, answer: Answer) -> bool:
    """Read one response; True if the connection can carry another one."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answer.status = int(lines[0].split(" ", 2)[1])
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        await _read_chunks(reader, answer)
    elif "content-length" in headers:
        piece = await reader.readexactly(int(headers["content-length"]))
        answer.pieces.append((time.perf_counter(), piece))
    else:
        while piece := await reader.read(READ_BYTES):
            answer.pieces.append((time.perf_counter(), piece))
        return False
    return headers.get("connection", "").lower() != "close"


async def _read_chunks(reader: asyncio.StreamReader, answer: Answer) -> None:
    """Take what has arrived, whole chunks at a time."""
    pending, pieces = b"", answer.pieces
    while True:
        received = await reader.read(READ_BYTES)
        if not received:
            raise EOFError("the server closed the connection in mid-stream")
        now = time.perf_counter()
        pending += received
        at = 0
        while (line := pending.find(b"\r\n", at)) >= 0:
            size = int(pending[at:line].partition(b";")[0], 16)
            end = line + 2 + size
            if len(pending) < end + 2:
                break
            if size == 0:
                return
            pieces.append((now, pending[line + 2 : end]))
            at = end + 2
        pending = pending[at:]
