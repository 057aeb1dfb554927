"""`equipoise clean`: remove what dead processes have left behind, and nothing that anybody may still want.

What is dead is proven, never guessed from an age (clocks jump) or a name. Proof is

- for a finished cell's unfinished business: its result is there, whole;
- for a half-written file: nobody holds the lease, or the lock, under which it is written;
- for an empty folder: it holds a lease that nobody holds, and nothing else.

A checkpoint and a record of a failure are kept, whoever wrote them. That no experiment in `params.yaml` has their cell
proves nothing: another branch may have it, an edit that is undone tomorrow, `equipoise run`, or another workspace that
shares the folder. Who knows better says so with `undeclared`. Finished results are never touched.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmark import leases
from benchmark.errors import EquipoiseError
from benchmark.store import RESULT_IN_WRITING, SET_ASIDE, read_record, storing

KEY = re.compile(r"[0-9a-f]{64}")
PARTIAL = re.compile(r"\..+\.(?P<pid>\d+)\.partial")
"""What `write_atomically` calls a file while it is written."""

IN_WRITING = (RESULT_IN_WRITING, "checkpoint.partial")
"""What only the holder of the lease writes; whoever takes it next writes them anew."""


@dataclass(frozen=True)
class Leftover:
    """Something dead: a file or a folder, its size in bytes, and why it is dead."""

    path: Path
    size: int
    reason: str


def declared_keys() -> set[str]:
    """Return the keys of the cells of every declared experiment and its quick version. Raises what loading one does."""
    from benchmark.experiments import QUICK, experiment_names, load_experiment
    from benchmark.store import Store

    store = Store()
    names = [name for declared in experiment_names() for name in (declared, f"{declared}{QUICK}")]
    return {store.key(cell) for name in dict.fromkeys(names) for cell in load_experiment(name).cells()}


def clean(root: Path, declared: Collection[str] | None = None, *, dry_run: bool = False) -> Iterator[Leftover]:
    """Remove what is dead in a folder of results and yield each thing; with `dry_run` remove nothing.

    With the `declared` keys, the unfinished business of all other cells is dead too, where nobody holds it. Raises
    StorageError for what cannot be removed.
    """
    for file in sorted(root.rglob(".*.partial")):
        if _abandoned(file):
            yield from _removed([Leftover(file, _size(file), _HALF_WRITTEN)], dry_run)
    yield from _clean_store(root, declared, dry_run)
    # The cells of a search follow from its trials: which it will ask for again cannot be told from `params.yaml`.
    yield from _clean_store(root / "work" / "tuning", None, dry_run)


_HALF_WRITTEN = "half-written by a process that is gone"


def _clean_store(root: Path, declared: Collection[str] | None, dry_run: bool) -> Iterator[Leftover]:
    results = {file.stem: file for file in root.glob("cells/*/*/*/*.json")}
    finished = partial(_finished, results)
    for kept in sorted((root / "work" / SET_ASIDE).glob("*.json")):
        if finished(kept.stem):
            yield from _removed([Leftover(kept, _size(kept), "damaged, and its cell has been trained again")], dry_run)
    for work in sorted(root.glob("work/*")):
        if not (KEY.fullmatch(work.name) and work.is_dir()):
            continue
        undeclared = declared is not None and work.name not in declared
        with storing(work):
            if dry_run:
                dead = [] if leases.held(work) else _dead(work, finished(work.name), undeclared)
                removed = list(dead)
            else:
                with leases.hold(work, seconds=0) as free:
                    dead = _dead(work, finished(work.name), undeclared) if free else []
                    removed = list(_removed(dead, dry_run))
        yield from removed


def _dead(work: Path, finished: bool, undeclared: bool) -> list[Leftover]:
    """Return what is dead in a folder of unfinished business that nobody holds: parts of it, or all of it."""
    names = {file.name for file in work.iterdir()} - {leases.LEASE}
    if finished:
        reason = "its cell is finished"
    elif undeclared:
        reason = "no declared experiment has its cell"
    elif not names:
        reason = "empty, and nobody trains its cell"
    else:
        return [Leftover(work / name, _size(work / name), _HALF_WRITTEN) for name in IN_WRITING if name in names]
    return [Leftover(work, _size(work), reason)]


def _removed(leftovers: list[Leftover], dry_run: bool) -> Iterator[Leftover]:
    for leftover in leftovers:
        if not dry_run:
            with storing(leftover.path):
                if leftover.path.is_dir():
                    shutil.rmtree(leftover.path)
                else:
                    leftover.path.unlink(missing_ok=True)
        yield leftover


def _finished(results: dict[str, Path], key: str) -> bool:
    """Whether a key's result is there, whole and of a version that is understood."""
    try:
        return key in results and read_record(results[key], key) is not None
    except EquipoiseError:
        return False


def _abandoned(file: Path) -> bool:
    """Whether nobody writes a partial file: no process of its number here, and no lock from another machine."""
    named = PARTIAL.fullmatch(file.name)
    if named is None or _alive(int(named["pid"])):
        return False
    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked, gone, or on a disk without locks, where nothing can be proven
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())
