"""A local host for what is fetched: it serves bytes and files in ranges, and misbehaves in every way there is."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Server:
    """What is served by path, and what was asked for.

    `answers[path]` says what each request in turn meets, the last one for all after it: `whole`; `no range`, all of it
    whatever was asked; `wrong`, other bytes; `cut` or `stall` after half of it; or a status. `headers` go with every
    status of failure, `delay` is how long every answer takes in seconds. A path of `keys` wants that in the header
    `Authorization`, one of `redirects` names another place, with headers, and one of `posts` answers a POST with the
    status and content that the function makes of its.
    """

    url: str
    content: dict[str, bytes | Path] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    posts: dict[str, Callable[[Any], tuple[int, object]]] = field(default_factory=dict)
    delay: float = 0.0
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    most_at_once: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _now: int = 0

    def serve_folder(self, folder: Path, prefix: str = "/") -> None:
        """Serve all files below a folder."""
        found = (file for file in folder.rglob("*") if file.is_file())
        self.content |= {f"{prefix}{file.relative_to(folder).as_posix()}": file for file in found}

    @property
    def asked(self) -> Counter[str]:
        """How often each path was asked for."""
        return Counter(path for path, _ in self.requests)

    def body(self, path: str) -> bytes | None:
        """Return what is served at a path."""
        found = self.content.get(path)
        return found.read_bytes() if isinstance(found, Path) else found

    def answer(self, path: str) -> str:
        """Return what the next request of a path meets."""
        with self._lock:
            answers = self.answers.get(path, ["whole"])
            return answers.pop(0) if len(answers) > 1 else answers[0]

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the requests that are answered at the same time."""
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.delay)
            yield
        finally:
            with self._lock:
                self._now -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are two packets: the second one would wait for the first to be acknowledged.
    disable_nagle_algorithm = True
    host: Server

    def do_GET(self) -> None:
        with self.host.counted():
            self._get()

    def do_HEAD(self) -> None:
        self.host.heads.append(self.path)
        if self.path in self.host.redirects:
            self._redirect()
            return
        content, answer = self.host.body(self.path), self.host.answers.get(self.path, ["whole"])[0]
        if content is None or answer.isdigit():
            self._fail(int(answer) if answer.isdigit() else 404)
            return
        self._begin(200, len(content))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.host.requests.append((self.path, None))
        status, answer = self.host.posts[self.path](json.loads(body))
        content = json.dumps(answer).encode()
        self._begin(status, len(content))
        self.wfile.write(content)

    def _get(self) -> None:
        asked = self.headers.get("Range")
        self.host.requests.append((self.path, asked))
        if self.path in self.host.keys and self.headers.get("Authorization") != self.host.keys[self.path]:
            self._fail(401)
            return
        if self.path in self.host.redirects:
            self._redirect()
            return
        answer, content = self.host.answer(self.path), self.host.body(self.path)
        if content is None or answer.isdigit():
            self._fail(int(answer) if answer.isdigit() else 404)
            return
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and answer != "no range" else 0
        if first >= len(content) and first:
            self._fail(416)
            return
        body = b"<html>" if answer == "wrong" else content[first:]
        partial = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if first else {}
        self._begin(206 if first else 200, len(body), partial)
        whole = answer not in ("cut", "stall")
        self.wfile.write(body if whole else body[: len(body) // 2])
        if answer == "stall":
            self.host.stalled.wait(20)
        self.close_connection = not whole

    def _begin(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _fail(self, status: int) -> None:
        self._begin(status, 0, self.host.headers)

    def _redirect(self) -> None:
        place, headers = self.host.redirects[self.path]
        self._begin(302, 0, {"Location": place, **headers})

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    """Serve on the loopback address."""

    class Handler(_Handler):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        host = Handler.host = Server(f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield host
        finally:
            host.stalled.set()
            http.shutdown()
            thread.join()
