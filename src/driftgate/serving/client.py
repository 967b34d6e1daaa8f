"""HTTP and JSON with one server: time limits, retries, and errors that say what the server said."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError, RunError

SHOWN = 300
"""Characters of a server's own words that an error repeats."""


@dataclass(frozen=True)
class Limits:
    """How long a server is waited for. Times are in seconds."""

    connect: float = 10.0
    """Until a connection stands, and for an answer to a health check."""
    answer: float = 1800.0
    """Until an answer has come."""
    retries: int = 3
    """More attempts after a failed connection or an answer of 500 or above."""
    pause: float = 0.5
    """Before the first retry; doubled each time."""
    lost: float = 600.0
    """Until a run gives up when no server is left."""
    health: float = 5.0
    """Between two health checks of a server that has work, or that is hoped for."""


class ServingError(RunError):
    """A failure of servers. What was being computed here is whole, so that a run can be saved."""


class ServerError(ServingError):
    """What a server did, with its address."""

    def __init__(self, url: str, what: str):
        super().__init__(f"{url}: {what}")
        self.url, self.what = url, what

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can go to other ranks."""
        return type(self), (self.url, self.what)


class LostError(ServerError):
    """No connection, no answer in time, or an answer of 500 or above: another attempt may succeed."""


class RefusedError(ServerError):
    """The server understood, and said no: asking again would not help. `status`: its HTTP status."""

    def __init__(self, url: str, what: str, status: int):
        super().__init__(url, what)
        self.status = status

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.what, self.status)


class RubbishError(ServerError):
    """An answer that is not what such a server says."""


class Server:
    """One server. Every call may come from any thread."""

    def __init__(self, url: str, limits: Limits | None = None):
        """Raises InputError for what is no http address."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise InputError(f"urls = {url!r}: is no address; give one such as http://127.0.0.1:8000")
        self.url, self.limits = url.rstrip("/"), limits or Limits()
        self.host, self.port, self.base = parts.hostname, parts.port or 80, parts.path.rstrip("/")
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def get(self, path: str, timeout: float | None = None) -> Any:
        """The JSON that a GET answers. Raises ServerError."""
        return self.call("GET", path, None, timeout)

    def post(self, path: str, body: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """The JSON that a POST answers. Raises ServerError."""
        return self.call("POST", path, body, timeout)

    def patient(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The same, asked again after a failure that may pass, with growing pauses. Raises ServerError."""
        for attempt in range(self.limits.retries):
            with suppress(LostError):
                return self.call(method, path, body)
            time.sleep(self.limits.pause * 2**attempt)
        return self.call(method, path, body)

    def healthy(self) -> bool:
        """Whether it says so now."""
        try:
            self._exchange("GET", "/health", None, self.limits.connect)
        except ServerError:
            return False
        return True

    def hang_up(self) -> None:
        """End all calls that wait for an answer, in whatever thread; each raises LostError. The server notices."""
        with self._lock:
            waiting = list(self._open)
        for connection in waiting:
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """One attempt. timeout: seconds until the answer; None for `limits.answer`. Raises ServerError."""
        status, content = self._exchange(method, path, body, timeout or self.limits.answer)
        if status >= 400:
            raise RefusedError(self.url, f"{path} answers {status}: {_said(content)}", status)
        try:
            return json.loads(content) if content.strip() else None
        except ValueError:
            raise RubbishError(self.url, f"{path} answers what is no JSON: {_said(content)}") from None

    def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float) -> tuple[int, bytes]:
        """Status below 500 and content. Raises LostError."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.limits.connect)
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content is not None else {}
        with self._lock:
            self._open.add(connection)
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            connection.request(method, self.base + path, content, headers)
            answer = connection.getresponse()
            status, said = answer.status, answer.read()
        except TimeoutError:
            raise LostError(self.url, f"{path} has no answer after {timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise LostError(self.url, f"{path} cannot be reached ({_cause(error)})") from None
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if status >= 500:
            raise LostError(self.url, f"{path} answers {status}: {_said(said)}")
        return status, said


def _cause(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def _said(content: bytes) -> str:
    """The message in a server's answer, on one line."""
    text = content.decode("utf-8", "replace")
    with suppress(ValueError, AttributeError):
        said = json.loads(text)
        said = said.get("error", said.get("detail", said))
        text = said["message"] if isinstance(said, dict) and "message" in said else str(said)
    return " ".join(str(text).split())[:SHOWN] or "nothing"
