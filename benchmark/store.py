"""Content-addressed results of cells.

`results/cells/<dataset>/<backbone>/<method>/<key>.json` holds finished cells and nothing else. Unfinished
business lives in `results/work/<key>/`: `error.json` of the last failure, `lease` (a lock that the system
releases when its holder dies, so that running and dead can be told apart), the checkpoint, and the result as
long as it is being written.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from benchmark import leases
from benchmark.errors import CellError, DataError, EquipoiseError, SchemaError, disk_full
from benchmark.paths import results_home
from benchmark.protocol import Cell, canonical
from benchmark.version import RESULT_SCHEMA

SET_ASIDE = "set_aside"
RESULT_IN_WRITING = "result.json"

PROBE_SECONDS = 1.0
"""How long taking a lease waits: longer than `status` holds it to see whether it is free."""


class StorageError(EquipoiseError):
    """The results folder cannot be written: every further cell would be trained for nothing."""


class CorruptResultError(DataError):
    """A result file is truncated, unreadable or belongs to another cell."""


class State(StrEnum):
    """What the store knows about a cell."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True)
class Status:
    """State of one cell; `reason` says why it failed."""

    state: State
    reason: str = ""


def storage_error(error: OSError, target: Path | str) -> StorageError:
    """Return the one sentence for a failed write."""
    cause = "the disk is full. Free some space" if disk_full(error) else f"{error.strerror or error}. Correct that"
    return StorageError(f"Cannot write {target}: {cause} and give the same command again; finished cells are kept.")


@contextmanager
def storing(target: Path) -> Iterator[None]:
    """Turn a failed write into a StorageError."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, target) from error


def write_atomically(target: Path, content: str | bytes, partial: Path | None = None) -> None:
    """Write a file (text as UTF-8) that is whole or absent, whatever happens.

    `partial` is its name while it is written, on the same disk; it is locked, so that `equipoise clean` can tell it
    from what a dead process has left. Raises StorageError.
    """
    partial = partial or target.with_name(f".{target.name}.{os.getpid()}.partial")
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                with suppress(OSError):  # a disk without locks: then nothing is removed from it either
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(target)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_record(path: Path, key: str) -> dict[str, Any] | None:
    """Return the record of a key that a file holds, None without the file.

    Raises SchemaError for a record of a newer version and CorruptResultError for a file that is not the key's record.
    """
    try:
        record = from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise CorruptResultError(_corrupt(path, "is a folder")) from None
    except ValueError as error:
        raise CorruptResultError(_corrupt(path, f"is truncated or corrupt ({error})")) from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, int):
        raise CorruptResultError(_corrupt(path, "is no record: it has no schema number"))
    if schema > RESULT_SCHEMA:
        raise SchemaError(f"{path} has schema {schema}; this version reads up to {RESULT_SCHEMA}. Upgrade equipoise.")
    if record.get("key") != key:
        raise CorruptResultError(_corrupt(path, f"holds the record of key {record.get('key')!r}"))
    found: dict[str, Any] = record
    return found


class Store:
    """The results below one folder, by default the workspace's.

    Sources are read once per store: a cell's key does not change while a command runs.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or results_home()
        self._keys: dict[str, str] = {}
        self._sources: dict[tuple[str, ...], dict[str, str]] = {}
        self._identities: dict[Path, Counter[str]] = {}

    def key(self, cell: Cell) -> str:
        """Return the cell's key."""
        identity = cell.model_dump_json()
        if identity not in self._keys:
            places = (cell.method, cell.dataset, cell.backbone, cell.fusion)
            if places not in self._sources:
                self._sources[places] = cell.sources()
            self._keys[identity] = cell.key(self._sources[places])
        return self._keys[identity]

    def folder(self, cell: Cell) -> Path:
        """Folder of the finished cells of the cell's dataset, backbone and method."""
        return self.root / "cells" / cell.dataset / cell.backbone / cell.method

    def path(self, cell: Cell) -> Path:
        """File of the cell's result."""
        return self.folder(cell) / f"{self.key(cell)}.json"

    def work(self, cell: Cell) -> Path:
        """Folder of the cell's unfinished business."""
        return self.root / "work" / self.key(cell)

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """Return the cell's record, None without one.

        Raises SchemaError for a record of a newer version and CorruptResultError for a file that is not the
        cell's record.
        """
        return read_record(self.path(cell), self.key(cell))

    def write(self, cell: Cell, record: Mapping[str, Any]) -> Path:
        """Store the record and remove the cell's unfinished business; the caller holds the lease."""
        path = self.path(cell)
        document = {**record, "schema": RESULT_SCHEMA, "key": self.key(cell), "cell": cell.identity()}
        try:
            text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except ValueError:
            raise CellError(f"{cell.describe()}: the record holds a number that is not finite.") from None
        # Not written beside the result: a killed process would leave a file in an output of DVC.
        write_atomically(path, text + "\n", self.work(cell) / RESULT_IN_WRITING)
        self.clear(cell)
        return path

    def clear(self, cell: Cell) -> None:
        """Remove the unfinished business of a finished cell."""
        shutil.rmtree(self.work(cell), ignore_errors=True)

    def set_aside(self, cell: Cell) -> Path | None:
        """Move a corrupt result out of the way and return where it is kept, None when somebody else has seen to it."""
        path = self.path(cell)
        kept = self.root / "work" / SET_ASIDE / path.name
        # Without the lease this could be the whole result of a grid beside this one, which has set aside and trained.
        with self.lease(cell) as mine:
            if not mine or not self._corrupt(cell):
                return None
            with storing(kept):
                kept.parent.mkdir(parents=True, exist_ok=True)
                path.replace(kept)
        return kept

    def _corrupt(self, cell: Cell) -> bool:
        try:
            self.read(cell)
        except CorruptResultError:
            return True
        return False

    def fail(self, cell: Cell, kind: str, message: str, traceback: str = "") -> Path:
        """Record a failed attempt; the next run of the grid tries again."""
        path = self.work(cell) / "error.json"
        document = {
            "key": self.key(cell),
            "cell": cell.identity(),
            "error": f"{kind}: {message}",
            "class": kind,
            "message": message,
            "traceback": traceback,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "attempts": (self.error(cell) or {}).get("attempts", 0) + 1,
        }
        write_atomically(path, json.dumps(document, indent=2) + "\n")
        return path

    def error(self, cell: Cell) -> dict[str, Any] | None:
        """Return the record of the cell's last failure, None when it has not failed; a damaged one says only that."""
        path = self.work(cell) / "error.json"
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        message = f"It failed, but {path} is truncated or corrupt"
        return {"key": self.key(cell), "cell": cell.identity(), "error": message, "message": message}

    @contextmanager
    def lease(self, cell: Cell, seconds: float = PROBE_SECONDS) -> Iterator[bool]:
        """Hold the right to train the cell, lost when the process ends; yields whether it was free."""
        work = self.work(cell)
        with ExitStack() as stack:
            with storing(work):
                work.mkdir(parents=True, exist_ok=True)
                mine = stack.enter_context(leases.hold(work, seconds))
            yield mine

    def running(self, cell: Cell) -> bool:
        """Return whether a living process trains the cell."""
        work = self.work(cell)
        with storing(work):
            return leases.held(work)

    def status(self, cell: Cell) -> Status:
        """Return what is known about the cell; raises SchemaError for a result of a newer version."""
        try:
            if self.read(cell) is not None:
                return Status(State.DONE)
        except CorruptResultError as error:
            return Status(State.FAILED, str(error))
        if self.running(cell):
            return Status(State.RUNNING)
        failure = self.error(cell)
        if failure is not None:
            return Status(State.FAILED, str(failure.get("error")))
        return Status(State.STALE if self._identity_stored(cell) else State.MISSING)

    def _identity_stored(self, cell: Cell) -> bool:
        """Whether a result has the cell's configuration; its key is then another, because sources changed."""
        folder = self.folder(cell)
        if folder not in self._identities:
            found: Counter[str] = Counter()
            for file in folder.glob("*.json"):
                with suppress(OSError, ValueError, KeyError, TypeError):
                    found[canonical(json.loads(file.read_text(encoding="utf-8"))["cell"])] += 1
            self._identities[folder] = found
        return canonical(cell.identity()) in self._identities[folder]

    def records(self, cells: Iterable[Cell]) -> list[dict[str, Any]]:
        """Return the records of those cells that are finished."""
        return [record for cell in cells if (record := self.read(cell)) is not None]

    def failures(self, cells: Iterable[Cell]) -> list[dict[str, Any]]:
        """Return the error records of those cells that have failed."""
        return [failure for cell in cells if (failure := self.error(cell)) is not None]


def _corrupt(path: Path, fault: str) -> str:
    return f"Result {path} {fault}. Run its grid again: the file is set aside and the cell trained anew."
