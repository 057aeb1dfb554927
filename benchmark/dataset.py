"""The dataset contract: a card that says what the data is, and a step from raw files to the prepared form.

A dataset is a folder `datasets/<name>/` whose `__init__.py` defines one `Dataset` subclass. One without
sources needs no download and is prepared on first use; the others go through `equipoise fetch` and `equipoise
prepare`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from benchmark.errors import DataError, UsageError, disk_full, unknown_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from benchmark.preparation import PreparedWriter

PARTS = ("train", "val", "test")
_LFS_POINTER = b"version https://git-lfs"


def file_digest(file: Path, algorithm: str = "sha256") -> str:
    """Return the digest (hex) of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


@dataclass(frozen=True)
class Checksum:
    """What a file must be: its sha256 (hex), or as much of its beginning as is published, and perhaps its bytes.

    `md5` is for files whose publisher states no other checksum.
    """

    sha256: str
    size: int | None = None
    md5: str = ""

    @property
    def whole(self) -> bool:
        """Whether the sha256 is known to the last digit."""
        return len(self.sha256) == 64

    def fault(self, file: Path) -> str | None:
        """Return what is wrong with `file`, or None when it is the right one."""
        size = file.stat().st_size
        if self.size is not None and size != self.size:
            with file.open("rb") as stream:
                pointer = stream.read(len(_LFS_POINTER)) == _LFS_POINTER
            text = f"{size} bytes instead of {self.size}"
            return f"{text}, a Git LFS pointer and not the file it stands for" if pointer else text
        for algorithm, stated in (("sha256", self.sha256), ("md5", self.md5)):
            if stated:
                found = file_digest(file, algorithm)
                if not found.startswith(stated):
                    return f"{algorithm} {found[:12]}… instead of {stated[:12]}…"
        return None


@dataclass(frozen=True)
class Verification:
    """What a check of one source found; `broken` maps a path to what is wrong with it.

    `expected` None: nobody says which files there have to be, and `unknown` were found.
    """

    source: str
    expected: int | None
    missing: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    unknown: int = 0

    @property
    def complete(self) -> bool:
        """True when every expected file is there with the right bytes."""
        return not self.missing and not self.broken

    def __str__(self) -> str:
        if self.expected is None:
            return f"{self.source}: {self.unknown} found, without checksums"
        found = self.expected - len(self.missing)
        text = f"{self.source}: {self.expected} expected, {found} found, {len(self.broken)} broken"
        return f"{text}, {self.unknown} unknown ignored" if self.unknown else text

    def faults(self, shown: int = 3) -> str:
        """Return the counts with the first broken and missing files by name."""
        problems = [f"{path}: {fault}" for path, fault in self.broken.items()]
        problems += [f"{path} is missing" for path in self.missing]
        more = [f"{len(problems) - shown} more"] if len(problems) > shown else []
        return f"{self} ({'; '.join(problems[:shown] + more)})"


@dataclass(frozen=True)
class Manifest:
    """Checksums of single files: a CSV with the columns `path`, `sha256` and `size`, or `path` and `md5`.

    `urls` are patterns with `{path}` under which a file can be had when the archive lacks it, or when there is none.
    `lfs` are Git repositories (`https://….git`) that hold the files as Git LFS objects, asked before the URLs.
    """

    file: Path
    urls: tuple[str, ...] = ()
    lfs: tuple[str, ...] = ()

    @cached_property
    def files(self) -> dict[str, Checksum]:
        """Relative path to checksum, in the order of the CSV."""
        with self.file.open(newline="", encoding="utf-8") as stream:
            rows = {row["path"]: _stated(row) for row in csv.DictReader(stream)}
        outside = [path for path in rows if leaves_folder(path)]
        if outside:
            raise DataError(f"{self.file.name}: {outside[0]!r} is outside the raw folder. Correct the manifest.")
        return rows


def _stated(row: Mapping[str, str]) -> Checksum:
    """Return what a row of a manifest states."""
    size = row.get("size")
    return Checksum(row.get("sha256", ""), int(size) if size else None, row.get("md5", ""))


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file to fetch, or many single ones.

    `file` is its name below the raw folder and in a mirror. It is verified as a whole by `checksum`, or,
    where an archive is not byte-stable, member by member through `manifest` (its members are then unpacked
    into the raw folder). Without `urls` the terms forbid a download and `obtain` says where a person gets the
    file; without either, the files of the manifest come from its own `urls`, and `file` only names them.

    With `suffix`, such as `.mp4`, it is a folder of files that a person brings as `obtain` says and nobody publishes
    checksums of: some have to be there, in any layout. Which are wanted and can be read is for preparing to find out.
    """

    file: str
    urls: tuple[str, ...] = ()
    checksum: Checksum | None = None
    manifest: Manifest | None = None
    obtain: str = ""
    suffix: str = ""

    def known(self, raw: Path) -> Checksum | None:
        """Return the file's checksum; one that is published in part is completed by that of the copy first fetched."""
        if self.checksum is None or self.checksum.whole or not self._pin(raw).is_file():
            return self.checksum
        return replace(self.checksum, sha256=self._pin(raw).read_text(encoding="ascii").strip())

    def remember(self, raw: Path) -> None:
        """Keep the sha256 of a file that was found right beside it, where it is published in part, for `known`."""
        known = self.known(raw)
        if known is not None and not known.whole and (raw / self.file).is_file():
            self._pin(raw).write_text(f"{file_digest(raw / self.file)}\n", encoding="ascii")

    def _pin(self, raw: Path) -> Path:
        return raw / f"{self.file}.sha256"

    def check(self, raw: Path) -> Verification:
        """Compare the files below `raw` with their checksums."""
        if self.suffix:
            found = len(files_below(raw / self.file, self.suffix))
            return Verification(
                self.file, None, missing=() if found else (f"{self.file}/**/*{self.suffix}",), unknown=found
            )
        checksum = self.known(raw)
        files = self.manifest.files if self.manifest else {self.file: checksum} if checksum else {}
        present = {path: checksum for path, checksum in files.items() if (raw / path).is_file()}
        faults = {path: checksum.fault(raw / path) for path, checksum in present.items()}
        # Files that lie beside the expected ones in the folders of an unpacked archive.
        parents = [path.rpartition("/")[0] for path in files if "/" in path]
        tops = {parent.partition("/")[0] for parent in parents}
        folders = [os.path.commonpath([own for own in parents if own.partition("/")[0] == top]) for top in tops]
        beside = sum(file.is_file() for folder in folders for file in (raw / folder).rglob("*"))
        return Verification(
            self.file,
            expected=len(files),
            missing=tuple(path for path in files if path not in present),
            broken={path: fault for path, fault in faults.items() if fault},
            unknown=beside - len(present) if folders else 0,
        )


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """What a dataset is: terms, classes, shapes per sample, named splits with their reasons, and sources.

    `zeros` gives the stored value that means zero in a modality whose sign counts, as that of motion does: it is
    normalised to 0, so that a change of sign stays one. The other modalities are normalised to mean 0. `raw` names the
    dataset whose sources these are, where it is another one: both then read the same raw files, fetched once.

    Where a domain is left out, the other domains' parts are trained and validated on and the left-out one's test part
    is tested. `held_out` is for splits of which the literature takes other parts: it maps `train` and `val` to the
    parts of the sources and `test` to those of the target that they are made of.
    """

    name: str
    title: str
    licence: str
    citation: str
    shapes: Mapping[str, tuple[int, ...]]
    classes: tuple[str, ...]
    splits: Mapping[str, str]
    default_split: str
    domains: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    zeros: Mapping[str, float] = field(default_factory=dict)
    raw: str = ""
    held_out: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a card that contradicts itself, before anything is fetched."""
        if self.default_split not in self.splits:
            raise unknown_name(f"default split of dataset {self.name!r}", self.default_split, self.splits)
        for modality in self.zeros.keys() - self.shapes.keys():
            raise unknown_name(f"zero in dataset {self.name!r} of the modality", modality, self.shapes)
        for split, made in self.held_out.items():
            if split not in self.splits:
                raise unknown_name(f"held-out split of dataset {self.name!r}", split, self.splits)
            shared = set(made["train"]).intersection(made["val"])
            if shared:
                raise UsageError(
                    f"Dataset {self.name!r}: without a domain, split {split!r} trains and validates on the same part "
                    f"{min(shared)!r}. Correct its card."
                )
        for source in self.sources:
            if not (source.checksum or source.manifest or source.suffix):
                raise UsageError(f"Dataset {self.name!r}: {source.file} has no checksum. Add one, or a manifest.")
            if not ((source.urls and not source.suffix) or source.obtain or (source.manifest and source.manifest.urls)):
                raise UsageError(f"Dataset {self.name!r}: {source.file} has no URL. Add one, or how to obtain it.")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The input streams, in the order of `shapes`."""
        return tuple(self.shapes)

    @property
    def raw_name(self) -> str:
        """Name of the folder of raw files, among those of all datasets and in a mirror."""
        return self.raw or self.name


class Dataset(ABC):
    """A dataset: its card and its preparation."""

    card: ClassVar[DatasetCard]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of one sample per modality, without the batch dimension."""
        return self.card.shapes

    @abstractmethod
    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Read the verified files below `raw` and hand arrays and samples to `out`."""

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return normalised inputs (B, *shape) with random changes from `generator`; default: unchanged."""
        return inputs


def hash_order(keys: Sequence[str]) -> list[int]:
    """Return the positions of `keys` in the order of their sha256 hex digests: a fixed shuffle."""
    digests = [hashlib.sha256(key.encode("ascii")).hexdigest() for key in keys]
    return sorted(range(len(keys)), key=digests.__getitem__)


def stratified_parts(keys: Sequence[str], labels: Sequence[int], cuts: tuple[float, float] = (0.7, 0.8)) -> list[str]:
    """Return the part of every sample.

    In hash order, a class's samples are train up to the share `cuts[0]`, then val up to `cuts[1]`, then test.
    """
    order = hash_order(keys)
    parts = [""] * len(keys)
    for label in sorted(set(labels)):
        members = [position for position in order if labels[position] == label]
        # Floating point, rounded down: 0.7 * 180 gives 125 on every machine, and the known counts rest on it.
        first, second = (int(cut * len(members)) for cut in cuts)
        for rank, position in enumerate(members):
            parts[position] = "train" if rank < first else "val" if rank < second else "test"
    return parts


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix at any depth below a folder, in the order of their paths; links are followed."""
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(where, name) for where, _, names in walk for name in names if name.endswith(suffix))


def leaves_folder(path: str) -> bool:
    """Tell whether a path in an archive or manifest points outside the folder it is unpacked into."""
    pure = PurePosixPath(path.replace("\\", "/"))
    return pure.is_absolute() or ".." in pure.parts or path[1:2] == ":"


def storage_error(error: OSError, file: Path | str, again: str) -> DataError:
    """Return the one sentence for a write that failed: a full disk, a missing permission."""
    again = f"run `{again}` again; finished files are kept."
    if disk_full(error):
        return DataError(f"The disk is full while writing {file}. Free some space and {again}")
    return DataError(f"Cannot write {file}: {error.strerror or error}. Correct that and {again}")
