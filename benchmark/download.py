"""Downloading one file from one URL: resumed, retried, verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tenacity import Retrying, retry_if_exception_type

from benchmark.dataset import Checksum

# Called with a file's name, its bytes so far, and its size in bytes where that is known.
Progress = Callable[[str, int, int | None], None]

_TEMPORARY_STATUS = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Patience:
    """When to give up on a URL: after `attempts` in a row without a new byte.

    `wait` seconds lie before the second attempt, twice as many before the next, at most `longest_wait`; an
    attempt ends after `stall` seconds without a byte.
    """

    attempts: int = 4
    wait: float = 0.5
    longest_wait: float = 30.0
    stall: float = 30.0


class UnavailableError(Exception):
    """This way to a file is closed; another one may be open."""


class _TemporaryError(Exception):
    """The same request may succeed a little later."""


@dataclass(frozen=True)
class Downloader:
    """Completes `.part` files with one connection pool, one patience and one progress display."""

    client: httpx.Client
    patience: Patience
    progress: Progress

    def complete(self, url: str, part: Path, checksum: Checksum | None) -> None:
        """Bring `part` to its end and verify it, retrying what is temporary; raises UnavailableError."""
        fruitless = 0

        def attempt() -> None:
            nonlocal fruitless
            before = size_of(part)
            try:
                self._transfer(url, part, checksum)
            except (_TemporaryError, httpx.TransportError):
                fruitless = 0 if size_of(part) > before else fruitless + 1
                raise

        patience = self.patience
        retrying = Retrying(
            retry=retry_if_exception_type((_TemporaryError, httpx.TransportError)),
            stop=lambda _: fruitless >= patience.attempts,
            wait=lambda _: min(patience.longest_wait, patience.wait * 2.0 ** max(fruitless - 1, 0)),
            reraise=True,
        )
        try:
            retrying(attempt)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UnavailableError(f"no connection ({error or type(error).__name__})") from error
        except (_TemporaryError, httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"{reason}, {size_of(part)} bytes so far") from error

    def _transfer(self, url: str, part: Path, checksum: Checksum | None) -> None:
        """Make one request for what `part` lacks, then verify it."""
        resumed = have = size_of(part)
        size = checksum.size if checksum else None
        if size is None or have < size:
            headers = {"Range": f"bytes={have}-"} if have else {}
            with self.client.stream("GET", url, headers=headers) as response:
                have = _start(response, part, have)
                length = response.headers.get("Content-Length", "")
                total = size or (have + int(length) if length.isdigit() else None)
                with naming(part), part.open("ab" if have else "wb") as stream:
                    for block in response.iter_bytes():
                        stream.write(block)
                        have += len(block)
                        self.progress(part.stem, have, total)
        fault = checksum.fault(part) if checksum else None
        if fault:
            part.unlink()
            # The first half may have come from another version of the file: once more, from the start.
            raise _TemporaryError(fault) if resumed else UnavailableError(fault)


def _start(response: httpx.Response, part: Path, have: int) -> int:
    """Return the position in the file at which the answer's body starts; raises for an answer without one."""
    status = response.status_code
    if status == 200:
        return 0
    if status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        return have
    if status in (206, 416):
        part.unlink(missing_ok=True)
        raise _TemporaryError("the server has another file than the one begun")
    text = f"{status} {response.reason_phrase}"
    raise _TemporaryError(text) if status in _TEMPORARY_STATUS else UnavailableError(text)


def part_of(target: Path) -> Path:
    """Return where an unfinished `target` waits."""
    return target.with_name(target.name + ".part")


def size_of(file: Path) -> int:
    """Return a file's size in bytes, 0 where there is none."""
    return file.stat().st_size if file.is_file() else 0


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Put the file's name into an OSError: a failed write does not know it."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise
