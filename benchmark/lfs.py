"""Where a Git LFS repository keeps its objects, asked for by the hundred, without git.

The protocol is the batch API of https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md with basic transfers. An
object's name is the sha256 of its bytes, so that a manifest of checksums is the list of what to ask for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import httpx

from benchmark.dataset import Checksum
from benchmark.download import Address, Downloader, refuse
from benchmark.hosts import UnavailableError

BATCH = 100
_TYPE = "application/vnd.git-lfs+json"
_MARGIN_SECONDS = 60.0


@dataclass(frozen=True)
class _Answer:
    """What the repository says of one object: its address until a time (of the monotonic clock), or a refusal."""

    address: Address | None = None
    until: float = float("inf")
    refusal: str = ""


class Repository:
    """The objects of one Git LFS repository at `url`, of which `wanted` are going to be asked for, in that order."""

    def __init__(self, url: str, downloader: Downloader, wanted: Iterable[Checksum]) -> None:
        self.url = url
        self._downloader = downloader
        self._unasked = {checksum.sha256: checksum for checksum in wanted}
        self._answers: dict[str, _Answer] = {}
        self._closed = ""
        self._lock = Lock()

    def address(self, checksum: Checksum) -> Address:
        """Return where the object is now; raises UnavailableError when the repository does not say."""
        with self._lock:
            answer = self._answers.get(checksum.sha256)
            if answer is None or answer.until < time.monotonic():
                answer = self._ask(checksum)
        if answer.address is None:
            raise UnavailableError(answer.refusal)
        return answer.address

    def _ask(self, checksum: Checksum) -> _Answer:
        """Ask for an object and for those that are wanted next."""
        if self._closed:
            raise UnavailableError(self._closed)
        self._unasked.pop(checksum.sha256, None)
        following = [self._unasked.pop(name) for name in list(self._unasked)[: BATCH - 1]]
        try:
            answers = self._post([checksum, *following])
        except UnavailableError as error:
            # It would say the same of every other object.
            self._closed = str(error)
            raise
        self._answers |= answers
        return answers.get(checksum.sha256, _Answer(refusal="no word of this object"))

    def _post(self, objects: Iterable[Checksum]) -> dict[str, _Answer]:
        """Return what the repository says of objects, by name."""
        url = f"{self.url}/info/lfs/objects/batch"
        items = [{"oid": checksum.sha256, "size": checksum.size} for checksum in objects]
        body = {"operation": "download", "transfers": ["basic"], "objects": items}

        def attempt() -> dict[str, _Answer]:
            headers = {"Accept": _TYPE, "Content-Type": _TYPE}
            response = self._downloader.client.post(url, json=body, headers=headers)
            content = _json(response)
            refuse(response, str(content.get("message", "")))
            try:
                return {item["oid"]: _read(item) for item in content["objects"]}
            except (KeyError, TypeError, AttributeError) as error:
                raise UnavailableError("no answer of a Git LFS repository") from error

        return self._downloader.persist(url, attempt)


def _json(response: httpx.Response) -> Mapping[str, Any]:
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _read(item: Mapping[str, Any]) -> _Answer:
    """Return what is said of one object."""
    download = item.get("actions", {}).get("download")
    if download is None:
        error = item.get("error", {})
        return _Answer(refusal=f"{error.get('code', '')} {error.get('message', 'no address of this object')}".strip())
    until = time.monotonic() + download["expires_in"] - _MARGIN_SECONDS if "expires_in" in download else float("inf")
    return _Answer(Address(download["href"], download.get("header", {})), until)
