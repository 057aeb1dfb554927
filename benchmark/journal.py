"""Arrays that are made row by row, with a journal beside them: a preparation that was stopped goes on where it was.

Rows are put on the disk before the journal says so. What follows the last row that it names is written anew.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from benchmark.errors import DataError
from benchmark.prepared import Rows
from benchmark.protocol import digest

SECONDS = 5.0
"""How often rows are put on the disk and into the journal: a run that is killed loses those since then."""

UNFINISHED = "unfinished"
"""The folder of journals beside the arrays of a preparation that is not finished."""

Fact = TypeVar("Fact")
Made = tuple[Mapping[str, NDArray[Any]], Fact]
"""What is made for a key: an array per modality, without a batch dimension, and a fact to keep beside them."""


@dataclass(frozen=True)
class ArrayFile:
    """A `.npy` file of `count` rows of `shape`; `name` is what errors call it."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    count: int

    @property
    def header(self) -> bytes:
        """What the file begins with."""
        stream = io.BytesIO()
        kind = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(stream, {**kind, "shape": (self.count, *self.shape)})
        return stream.getvalue()

    def end(self, rows: int) -> int:
        """Return the number of bytes up to the end of the first `rows`."""
        return len(self.header) + rows * int(np.prod(self.shape)) * self.dtype.itemsize

    def rows(self) -> int:
        """Return how many whole rows the file holds at least."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        return max(0, size - self.end(0)) // (self.end(1) - self.end(0))

    def open(self, kept: int) -> BinaryIO:
        """Open the file behind its first `kept` rows, without what follows them."""
        # Through a file object rather than a memory map: a full disk is then an error and not a bus error.
        return _opened(self.path, self.end(kept)) if kept else _begun(self.path, self.header)

    def bytes_of(self, rows: NDArray[Any]) -> memoryview:
        """Return what is stored of rows (k, *shape).

        Raises DataError for another shape or dtype, and for a value that is not finite.
        """
        if rows.shape[1:] != self.shape:
            raise DataError(
                f"{self.name} samples have shape {rows.shape[1:]}, its card says {self.shape}. Correct one of them."
            )
        if rows.dtype != self.dtype:
            raise DataError(f"{self.name} rows have dtype {rows.dtype}, not {self.dtype}. Convert them.")
        if self.dtype.kind == "f" and not np.isfinite(rows).all():
            raise DataError(f"{self.name} holds values that are not finite. Check its preparation.")
        return np.ascontiguousarray(rows).data


class ReadByRows(Protocol):
    """An array of which some rows at a time are read: in memory, in a file or on a device."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and the shape of one."""
        ...

    def __getitem__(self, rows: Rows, /) -> NDArray[Any]:
        """Return these rows."""
        ...


@dataclass(frozen=True)
class OnDisk:
    """An array in a file, mapped anew for every read: what has been read does not stay in memory."""

    file: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and the shape of one."""
        shape: tuple[int, ...] = np.load(self.file, mmap_mode="r").shape
        return shape

    def __getitem__(self, rows: Rows, /) -> NDArray[Any]:
        """Return these rows."""
        found: NDArray[Any] = np.load(self.file, mmap_mode="r")[rows]
        return found


@dataclass(frozen=True)
class Journal(Generic[Fact]):
    """Arrays that grow together, a row of each for every one of `keys`, and the facts of those that are stored.

    `kind` is the facts' type: a dataclass of texts, numbers, truth values and tuples of these.
    """

    path: Path
    keys: Sequence[str]
    arrays: Mapping[str, ArrayFile]
    kind: type[Fact]

    def stored(self) -> list[bytes]:
        """Return the facts, as they are written, of all keys from the first on that need not be made again."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        if not lines or lines[0] != self._opening:
            return []
        facts = [line for line in lines[1:] if line.endswith(b"\n")]
        return facts[: min(array.rows() for array in self.arrays.values())]

    def complete(
        self,
        make: Callable[[int], Generator[Made[Fact], None, None]],
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Fact]:
        """Store what `make(n)` gives for the keys from number n on, n being how many are stored; returns all facts.

        `progress` gets the number of stored keys. Whatever is raised, what was made before is kept. Raises DataError
        where `make` gives too much, too little or what contradicts the arrays.
        """
        opening, facts, adapter = self._opening, self.stored(), TypeAdapter(self.kind)
        progress(len(facts))
        if len(facts) < len(self.keys):
            with ExitStack() as stack:
                streams = {m: stack.enter_context(array.open(len(facts))) for m, array in self.arrays.items()}
                start = sum(map(len, [opening, *facts]))
                journal = stack.enter_context(_opened(self.path, start) if facts else _begun(self.path, opening))
                made = stack.enter_context(closing(make(len(facts))))
                saved, at = len(facts), time.monotonic()
                try:
                    for rows, fact in made:
                        self._write(streams, rows, number=len(facts))
                        facts.append(adapter.dump_json(fact) + b"\n")
                        progress(len(facts))
                        if time.monotonic() - at >= SECONDS:
                            _save(streams.values(), journal, facts[saved:])
                            saved, at = len(facts), time.monotonic()
                finally:
                    _save(streams.values(), journal, facts[saved : len(self.keys)])
        for array in self.arrays.values():
            if len(facts) != array.count:
                raise DataError(f"{array.name} has {len(facts)} rows instead of {array.count}. Check its preparation.")
        return [adapter.validate_json(line) for line in facts]

    def _write(self, streams: Mapping[str, BinaryIO], rows: Mapping[str, NDArray[Any]], number: int) -> None:
        """Append a row to every array, to none if one is refused; rows beyond the last are only counted."""
        contents = {modality: array.bytes_of(rows[modality][None]) for modality, array in self.arrays.items()}
        if number < len(self.keys):
            for modality, content in contents.items():
                streams[modality].write(content)

    @property
    def _opening(self) -> bytes:
        """The first line: what the rows belong to."""
        headers = {modality: array.header.decode("latin-1") for modality, array in self.arrays.items()}
        return json.dumps({"keys": digest(list(self.keys)), "arrays": digest(headers)}).encode() + b"\n"


def _begun(path: Path, content: bytes) -> BinaryIO:
    stream = path.open("wb")
    stream.write(content)
    return stream


def _opened(path: Path, end: int) -> BinaryIO:
    """Open a file to write on behind its byte `end`, without what is there."""
    stream = path.open("r+b")
    stream.truncate(end)
    stream.seek(end)
    return stream


def _save(arrays: Iterable[BinaryIO], journal: BinaryIO, facts: Sequence[bytes]) -> None:
    """Put the arrays on the disk, then the facts into the journal and that on the disk."""
    for stream in arrays:
        stream.flush()
        os.fsync(stream.fileno())
    journal.write(b"".join(facts))
    journal.flush()
    os.fsync(journal.fileno())


@contextmanager
def replacing(folder: Path, version: str) -> Iterator[tuple[Path, Path]]:
    """Give a folder beside `folder` that takes its name at the end, and one in it for journals.

    A killed run leaves nothing that looks finished. What it leaves is there again for the same `version`, as long as
    there are journals; what another version left is cleared away.
    """
    work, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    journals = work / UNFINISHED / version
    if not journals.is_dir():
        shutil.rmtree(work, ignore_errors=True)
        journals.mkdir(parents=True)
    try:
        yield work, journals
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
    finally:
        if not any(journals.glob("*")):
            shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder / UNFINISHED)
    shutil.rmtree(old, ignore_errors=True)
