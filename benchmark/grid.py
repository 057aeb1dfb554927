"""Fill the store: find the cells without a result, train them on an executor, store what comes back."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from benchmark import executors
from benchmark.errors import INTERRUPTED, CellError, DataError, UsageError, disk_full
from benchmark.executors import Failure, Outcomes
from benchmark.protocol import Cell, Experiment, canonical, digest
from benchmark.registry import BACKBONES, DATASETS, FUSIONS
from benchmark.run import check_cell, run_cell, weights
from benchmark.store import (
    CorruptResultError,
    StorageError,
    Store,
    storage_error,
    write_atomically,
)
from benchmark.version import PROTOCOL_VERSION

POLL_SECONDS = 0.5
"""How often cells that another grid trains are looked at."""

Train = Callable[[Cell, Path], dict[str, Any]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What a worker says of a cell: `busy`, another grid trains it; `storage`, results cannot be written."""

    kind: Literal["done", "busy", "storage"]
    message: str = ""


@dataclass
class Tally:
    """What became of the cells of a grid: finished before, finished now, failed with their reasons."""

    total: int
    skipped: int = 0
    done: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    """Why the cells of a dataset could not be tried: its data are not on this machine."""
    interrupted: bool = False

    @property
    def exit_status(self) -> int:
        """0 when every cell is finished, 1 when some failed or lack their data, 130 after Ctrl-C."""
        return INTERRUPTED if self.interrupted else int(bool(self.failed or self.absent))


def fill(
    experiment: Experiment,
    methods: Sequence[str] = (),
    jobs: int | None = None,
    *,
    executor: str = "local",
    train: Train = run_cell,
) -> int:
    """Finish an experiment's cells, or those of the named methods, and return the exit status.

    A whole grid that is finished is described in `results/grids/<experiment>.json`. Raises UsageError before
    anything starts when a method is no row of the experiment or any row's options are wrong.
    """
    refuse_unknown_methods(experiment, methods)
    store = Store()
    cells = experiment.cells(tuple(methods))
    tally = complete(cells, experiment.name, jobs, executor=executor, train=train, store=store)
    if not methods and tally.exit_status == 0:
        write_atomically(
            store.root / "grids" / f"{experiment.name}.json",
            json.dumps(description(experiment), indent=2) + "\n",
        )
    return tally.exit_status


def refuse_unknown_methods(experiment: Experiment, methods: Sequence[str]) -> None:
    """Raise UsageError for a method that is no row of the experiment."""
    known = dict.fromkeys(row.method for row in experiment.rows())
    for method in methods:
        if method not in known:
            raise UsageError(
                f"Experiment {experiment.name!r} has no method {method!r}. Its methods: {', '.join(known)}."
            )


def description(experiment: Experiment) -> dict[str, Any]:
    """Return what all rows of a grid share: a change of it changes every row, and nothing else does."""
    return {
        "experiment": experiment.name,
        "protocol_version": PROTOCOL_VERSION,
        "protocol": digest(experiment.protocol.model_dump(mode="json")),
        "datasets": {name: DATASETS.entry(name).source_digest() for name in experiment.datasets},
        "backbones": {name: BACKBONES.entry(name).source_digest() for name in experiment.backbones},
        "fusions": {name: FUSIONS.entry(name).source_digest() for name in experiment.fusions},
        "seeds": experiment.seeds,
        "tuned": digest(
            {name: {row: s.model_dump() for row, s in rows.items()} for name, rows in experiment.tuned.items()}
        ),
    }


def complete(
    cells: Iterable[Cell],
    name: str,
    jobs: int | None = None,
    *,
    executor: str = "local",
    train: Train = run_cell,
    store: Store | None = None,
) -> Tally:
    """Train those cells that have no result and say what became of them; Ctrl-C keeps what is finished.

    `jobs` are trained side by side, None: as many as the executor's devices hold. Cells whose data are not on this
    machine are left out and named. Raises UsageError for a cell that cannot run, before the first one starts,
    DataError when no cell has its data, and StorageError when results cannot be written.
    """
    execute = executors.load(executor)
    store = store or Store()
    started = time.monotonic()
    wanted = {store.key(cell): cell for cell in cells}
    missing = _missing(store, wanted)
    tally = Tally(len(wanted), skipped=len(wanted) - len(missing))
    if not missing:
        click.echo(f"{name}: all {tally.total} cells are finished.")
        return tally
    _validate(missing.values())
    tally.absent = _prepare(missing.values())
    missing = {key: cell for key, cell in missing.items() if cell.dataset not in tally.absent}
    if not missing:
        raise DataError("\n".join(tally.absent.values()))
    try:
        with _display(name, tally, len(missing)) as say:
            _train(store, missing, tally, say, partial(execute, partial(work, store.root, train), jobs=jobs))
    except KeyboardInterrupt:
        tally.interrupted = True
    _summarise(name, store, tally, time.monotonic() - started)
    return tally


def work(root: Path, train: Train, task: tuple[Cell, str]) -> Answer:
    """Train one cell under its lease and store the result. Runs in a worker."""
    cell, key = task
    try:
        store = Store(root)
        with store.lease(cell) as mine:
            if not mine:
                return Answer("busy")
            _refuse_changed_sources(cell, key)
            if store.read(cell) is None:
                record = train(cell, store.work(cell))
                # Once more: the method's file is read when it is imported, which may have been after an edit.
                _refuse_changed_sources(cell, key)
                store.write(cell, record)
            else:
                store.clear(cell)
    except StorageError as error:
        return Answer("storage", str(error))
    except OSError as error:
        if not disk_full(error):
            raise
        return Answer("storage", str(storage_error(error, store.work(cell))))
    return Answer("done")


def _refuse_changed_sources(cell: Cell, key: str) -> None:
    if cell.key() != key:
        raise CellError(
            f"The source of method {cell.method!r} or dataset {cell.dataset!r} changed after the grid had "
            "started. Start the grid again."
        )


def _missing(store: Store, wanted: dict[str, Cell]) -> dict[str, Cell]:
    """Return the cells without a result; a corrupt result is set aside, so that its cell is one of them."""
    missing = {}
    for key, cell in wanted.items():
        try:
            finished = store.read(cell) is not None
        except CorruptResultError as error:
            kept = store.set_aside(cell)
            if kept is not None:
                click.echo(f"{error} Set aside as {kept}.", err=True)
            finished = False
        if finished and store.work(cell).exists():
            store.clear(cell)
        if not finished:
            missing[key] = cell
    return missing


def _validate(cells: Iterable[Cell]) -> None:
    """Check every row and column group once; raises one UsageError with all refusals."""
    rows = {canonical({**cell.identity(), "seed": 0}): cell for cell in cells}
    refusals = []
    for cell in rows.values():
        try:
            check_cell(cell)
        except UsageError as error:
            refusals.append(str(error))
    if refusals:
        raise UsageError("\n".join(refusals))


def _prepare(cells: Iterable[Cell]) -> dict[str, str]:
    """Prepare datasets that need no download; return why others, or their weights, are not there, by dataset."""
    from benchmark.preparation import obtain

    absent: dict[str, str] = {}
    for name, backbone, start in dict.fromkeys((cell.dataset, cell.backbone, cell.weights) for cell in cells):
        try:
            obtain(name)
            if start is not None:
                for shape in DATASETS.load(name)().shapes.values():
                    weights(backbone, start, shape)
        except DataError as error:
            absent.setdefault(name, str(error))
    return absent


def _train(
    store: Store,
    missing: dict[str, Cell],
    tally: Tally,
    say: Say,
    execute: Callable[[list[tuple[Cell, str]]], Outcomes[tuple[Cell, str], Answer]],
) -> None:
    """Hand out cells until each is finished or has failed; cells of a grid beside this one are waited for."""
    pending, elsewhere = dict(missing), dict[str, Cell]()
    while pending or elsewhere:
        tasks = [(cell, key) for key, cell in pending.items()]
        with closing(execute(tasks)) as outcomes:
            for outcome in outcomes:
                cell, key = outcome.task
                if isinstance(outcome.result, Failure):
                    _record_failure(store, cell, outcome.result, tally, say)
                elif outcome.result.kind == "storage":
                    raise StorageError(outcome.result.message)
                elif outcome.result.kind == "busy":
                    elsewhere[key] = cell
                else:
                    tally.done += 1
                    say(f"finished {cell.describe()}")
        pending = {}
        while elsewhere and not pending:
            pending = _returned(store, elsewhere, tally, say)
            if elsewhere and not pending:
                time.sleep(POLL_SECONDS)


def _record_failure(store: Store, cell: Cell, failure: Failure, tally: Tally, say: Say) -> None:
    store.fail(cell, failure.kind, failure.message, failure.traceback)
    # A CellError names its cell itself; what follows a first line is in the record.
    reason = failure.message.removeprefix(f"{cell.describe()}: ").partition("\n")[0]
    if failure.kind != CellError.__name__:
        reason = f"{failure.kind}: {reason}"
    tally.failed.append((cell, reason))
    say(f"failed {cell.describe()}: {reason}")


def _returned(store: Store, elsewhere: dict[str, Cell], tally: Tally, say: Say) -> dict[str, Cell]:
    """Count and drop the cells that the other grid has finished; drop and return those that it gave up."""
    free = {}
    for key, cell in list(elsewhere.items()):
        if store.read(cell) is not None:
            tally.done += 1
            say(f"finished elsewhere {cell.describe()}")
            del elsewhere[key]
        elif not store.running(cell):
            free[key] = elsewhere.pop(key)
    return free


@contextmanager
def _display(name: str, tally: Tally, total: int) -> Iterator[Say]:
    """One progress display on standard error: a bar in a terminal, a line per cell elsewhere."""
    click.echo(f"{name}: {total} of {tally.total} cells to train.", err=True)
    if not sys.stderr.isatty():
        yield lambda message: click.echo(f"[{tally.done + len(tally.failed)}/{total}] {message}", err=True)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(name, total=total)

        def say(message: str) -> None:
            progress.update(bar, completed=tally.done + len(tally.failed))
            if message.startswith("failed"):
                progress.console.print(message, style="red", markup=False, highlight=False)

        yield say


def _summarise(name: str, store: Store, tally: Tally, seconds: float) -> None:
    for cell, reason in tally.failed:
        click.echo(f"failed: {cell.describe()}: {reason} See {store.work(cell) / 'error.json'}.", err=True)
    for reason in tally.absent.values():
        click.echo(f"not trained: {reason}", err=True)
    left = tally.total - tally.skipped - tally.done - len(tally.failed)
    counts = f"{tally.skipped} finished before, {tally.done} finished now, {len(tally.failed)} failed"
    if tally.interrupted:
        click.echo(f"{name}: interrupted: {counts}, {left} left. Give the same command again to go on.")
    else:
        without = f", {left} without their data" if tally.absent else ""
        click.echo(f"{name}: {tally.total} cells: {counts}{without} ({seconds:.0f} s).")
