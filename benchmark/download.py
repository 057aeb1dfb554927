"""Downloading one file from one URL: resumed, retried, verified, and stopped in the middle when a fetch ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Event
from typing import TypeVar

import httpx
from tenacity import Retrying, retry_if_exception_type
from tenacity.nap import sleep_using_event

from benchmark.dataset import Checksum
from benchmark.hosts import ClosedError, Hosts, StoppedError, UnavailableError

T = TypeVar("T")

# Called with a file's path, its bytes so far, and its size in bytes where that is known; by any thread. The first call
# for a file says what is there of it before anything is asked for; the last has both numbers equal.
Progress = Callable[[str, int, int | None], None]

_INQUIRY_SECONDS = 10.0
_TEMPORARY_STATUS = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Patience:
    """When to give up on a URL: after `attempts` in a row without a new byte.

    `wait` seconds lie before the second attempt, twice as many before the next, at most `longest_wait`; an
    attempt ends after `stall` seconds without a byte. A host that asks to be left alone is, for up to `longest_pause`
    seconds. One that `files` files in a row were given up at is not asked again.
    """

    attempts: int = 6
    wait: float = 0.5
    longest_wait: float = 30.0
    stall: float = 30.0
    longest_pause: float = 300.0
    files: int = 3


class _TemporaryError(Exception):
    """The same request may succeed a little later, after the `pause` in seconds that the host asks for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Address:
    """Where a file is and the headers that open it."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Downloader:
    """Completes `.part` files with one connection pool, one patience, one memory of hosts and one progress display.

    `inquiries` remembers which hosts gave no answer when they were asked for sizes: no reason to ask for no files.
    """

    client: httpx.Client
    patience: Patience
    progress: Progress
    hosts: Hosts
    inquiries: Hosts

    @property
    def stopped(self) -> Event:
        """Set when the fetch ends before its time."""
        return self.hosts.stopped

    def complete(self, address: Address, part: Path, name: str, checksum: Checksum | None) -> None:
        """Bring `part` of the file `name` to its end and verify it, retrying what is temporary.

        Raises UnavailableError when it cannot be had there.
        """
        self.persist(address.url, lambda: self._transfer(address, part, name, checksum), lambda: size_of(part))

    def size(self, url: str) -> int | None:
        """Return the size in bytes that the host states of a file, asked once and not for long, or None."""
        host = host_of(url)
        try:
            self.inquiries.enter(host)
            response = self.client.head(url, timeout=min(self.patience.stall, _INQUIRY_SECONDS))
        except (ClosedError, httpx.HTTPError, httpx.InvalidURL) as error:
            self.inquiries.gave_up(host, _reason(error, 0))
            return None
        if not response.is_success:
            return None
        # Where a hub redirects to its storage, it states the size itself, as this may answer in pieces.
        stated = [answer.headers.get("X-Linked-Size") for answer in response.history]
        length = next((text for text in (*stated, response.headers.get("Content-Length")) if text), "")
        return int(length) if length.isdigit() else None

    def persist(self, url: str, attempt: Callable[[], T], so_far: Callable[[], int] = lambda: 0) -> T:
        """Return what `attempt` gives, once it neither fails for a while nor brings no byte more than `so_far`.

        Raises UnavailableError when patience is at its end or waiting is of no use.
        """
        patience, host = self.patience, host_of(url)
        fruitless = 0

        def once() -> T:
            nonlocal fruitless
            self.hosts.enter(host)
            before = so_far()
            try:
                return attempt()
            except (_TemporaryError, httpx.TransportError) as error:
                fruitless = 0 if so_far() > before else fruitless + 1
                if isinstance(error, _TemporaryError) and error.pause:
                    self._rest(host, error)
                raise

        retrying = Retrying(
            retry=retry_if_exception_type((_TemporaryError, httpx.TransportError)),
            stop=lambda _: fruitless >= patience.attempts,
            wait=lambda _: min(patience.longest_wait, patience.wait * 2.0 ** max(fruitless - 1, 0)),
            sleep=sleep_using_event(self.stopped),
            reraise=True,
        )
        try:
            found = retrying(once)
        except (ClosedError, StoppedError):
            raise
        except (_TemporaryError, httpx.TransportError) as error:
            reason = _reason(error, so_far())
            self.hosts.gave_up(host, reason)
            raise UnavailableError(reason) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(_reason(error, so_far())) from error
        except UnavailableError:
            self.hosts.answered(host)
            raise
        self.hosts.answered(host)
        return found

    def _rest(self, host: str, error: _TemporaryError) -> None:
        """Leave a host alone for as long as it asks for, or for good where that is too long to wait."""
        if error.pause <= self.patience.longest_pause:
            self.hosts.pause(host, error.pause)
            return
        reason = f"{error}, it asks to be left alone for {error.pause:.0f} s"
        self.hosts.close(host, reason)
        raise ClosedError(reason) from error

    def _transfer(self, address: Address, part: Path, name: str, checksum: Checksum | None) -> None:
        """Make one request for what `part` lacks, then verify it."""
        resumed = have = size_of(part)
        size = checksum.size if checksum else None
        if size is None or have < size:
            headers = {**address.headers, **({"Range": f"bytes={have}-"} if have else {})}
            with self.client.stream("GET", address.url, headers=headers) as response:
                have = _start(response, part, have)
                length = response.headers.get("Content-Length", "")
                total = size or (have + int(length) if length.isdigit() else None)
                with naming(part), part.open("ab" if have else "wb") as stream:
                    for block in response.iter_bytes():
                        if self.stopped.is_set():
                            raise StoppedError
                        stream.write(block)
                        have += len(block)
                        self.progress(name, have, total)
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
    refuse(response)
    raise UnavailableError(_status(response))


def refuse(response: httpx.Response, note: str = "") -> None:
    """Raise for a status that says no, for a while or, with a `note` why, for good."""
    text = f"{_status(response)}{f' ({note})' if note else ''}"
    if response.status_code in _TEMPORARY_STATUS:
        raise _TemporaryError(text, _pause(response.headers.get("Retry-After", "")))
    if not response.is_success:
        raise UnavailableError(text)


def _status(response: httpx.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}".strip()


def _pause(retry_after: str) -> float:
    """Return the seconds that a Retry-After header asks for, which has a number or a date."""
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _reason(error: Exception, so_far: int) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"no connection ({error or type(error).__name__})"
    return f"{str(error) or type(error).__name__}, {so_far} bytes so far"


def host_of(url: str) -> str:
    """Return the host of a URL, with its port where it is stated."""
    try:
        return httpx.URL(url).netloc.decode("ascii")
    except httpx.InvalidURL:
        return url


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
