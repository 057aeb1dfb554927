"""Tune an experiment: as many trials for every row, judged on validation data, with seeds that the table does not use.

Nothing of a search is kept but its cells and their scores: what comes next follows from them, so a search that was
interrupted replays from its store. The cells are kept apart, in `results/work/tuning`: those in `results/cells` are
the tables'.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product

import click

from benchmark.candidates import Candidate, Document, seeds
from benchmark.errors import INTERRUPTED, DataError, UsageError
from benchmark.experiments import TUNING_SCHEMA, absent_data, row_terms, stale_rows, tuning_file, tuning_record
from benchmark.grid import Tally, Train, complete, refuse_unknown_methods
from benchmark.paths import results_home
from benchmark.protocol import Cell, Experiment, Setting, Tuning
from benchmark.run import check_cell, run_cell
from benchmark.store import Store, write_atomically


def tune(
    experiment: Experiment,
    budget: int | None = None,
    methods: Sequence[str] = (),
    jobs: int | None = None,
    *,
    executor: str = "local",
    train: Train = run_cell,
) -> int:
    """Tune every row in every column group, or those of the named methods, and return the exit status as a grid's.

    `budget` stops the search early, to be continued. Rows that are tuned stay as they are, those that were tuned under
    other terms are tuned anew. Raises UsageError, before anything is trained, for an experiment without `tuning:`, a
    larger budget than it declares, or a searched value that a row refuses; DataError when no dataset is on this
    machine.
    """
    tuning = _declared(experiment, budget)
    refuse_unknown_methods(experiment, methods)
    experiment = experiment.model_copy(update={"tuned": {}})
    known = _entries(experiment, tuning_record(experiment.name))
    absent = absent_data(experiment, "tune")
    left_out = [f"{name}: {reason}" for name, reason in absent.items()]
    columns = [column for column in experiment.columns() if column[0] not in absent]
    if not columns:
        raise DataError("\n".join(left_out))
    click.echo("".join(f"left out: {reason}\n" for reason in left_out), err=True, nl=False)
    rows = [row for row in experiment.rows() if not methods or row.method in methods]
    store = Store(results_home() / "work" / "tuning")
    every = [
        Candidate(experiment, tuning, column, row, target)
        for column in columns
        for target in experiment.targets_of(column[0])
        for row in rows
    ]
    todo = [c for c in every if not c.settled(known.get(c.place, {}).get(c.row.label), store)]
    if todo:
        _refuse_wrong_values(experiment, todo)
        fill = partial(complete, jobs=jobs, executor=executor, train=train, store=store)
        status = _search(experiment, tuning, todo, budget or tuning.trials, store, fill)
    else:
        click.echo(f"{experiment.name}: all {len(every)} rows are tuned.")
        status = 0
    if status != INTERRUPTED:
        click.echo(_report(_entries(experiment, tuning_record(experiment.name)), every))
    return status or int(bool(absent))


def _declared(experiment: Experiment, budget: int | None) -> Tuning:
    tuning, name = experiment.tuning, experiment.name
    if tuning is None:
        raise UsageError(
            f"Experiment {name!r} declares no `tuning:`. Add it to params.yaml, for instance "
            "`tuning: {trials: 8, seeds: 1, search: {protocol: {optimizer.lr: [0.001, 0.01]}}}`."
        )
    if budget is not None and budget > tuning.trials:
        raise UsageError(
            f"Experiment {name!r} declares {tuning.trials} trials for every row, found --budget {budget}. Give at "
            f"most {tuning.trials}, or change `trials` in params.yaml, which starts the tuning of every row anew."
        )
    return tuning


def _refuse_wrong_values(experiment: Experiment, candidates: Sequence[Candidate]) -> None:
    """Raise one UsageError with every protocol value and every combination of options that cannot run."""
    refusals: dict[str, None] = {}
    for candidate in candidates:
        protocol, options = candidate.tuning.search.space(candidate.row)
        settings = [Setting(protocol={name: value}) for name, values in protocol.items() for value in values]
        settings += [Setting(options=dict(zip(options, values, strict=True))) for values in product(*options.values())]
        for setting in settings:
            try:
                check_cell(candidate.cells(setting)[0])
            except UsageError as error:
                refusals[str(error)] = None
    if refusals:
        raise UsageError(
            f"The search space of experiment {experiment.name!r} has values that cannot run:\n" + "\n".join(refusals)
        )


def _search(
    experiment: Experiment,
    tuning: Tuning,
    candidates: Sequence[Candidate],
    limit: int,
    store: Store,
    fill: Callable[[list[Cell], str], Tally],
) -> int:
    """Train one trial of every row per round, all in one pool; the result file is written after each round."""
    failed, absent = False, set[str]()
    for number in range(1, limit + 1):
        present = [candidate for candidate in candidates if candidate.column[0] not in absent]
        asked = [(candidate, setting) for candidate in present if (setting := candidate.ask()) is not None]
        if not asked:
            break
        cells = [cell for candidate, setting in asked for cell in candidate.cells(setting)]
        name = f"{experiment.name}, trial {number} of {tuning.trials}"
        tally = fill(cells, name)
        if tally.interrupted:
            return INTERRUPTED
        reasons = {store.key(cell): reason for cell, reason in tally.failed}
        failed = failed or bool(reasons)
        absent |= tally.absent.keys()
        for candidate, setting in asked:
            if candidate.column[0] not in absent:
                candidate.tell(setting, store, reasons)
        _write(experiment, tuning, candidates)
    return int(failed or bool(absent))


def _entries(experiment: Experiment, found: Document | None) -> dict[str, dict[str, Document]]:
    """Return a tuning record's entries by column group and row, without those of other terms: they are tuned anew."""
    if found is None:
        return {}
    stale = stale_rows(experiment, found["terms"])
    return {
        place: {label: entry for label, entry in rows.items() if label not in stale}
        for place, rows in found["columns"].items()
    }


def _write(experiment: Experiment, tuning: Tuning, candidates: Sequence[Candidate]) -> None:
    """Put the rows' entries into the result file; it is read again, as another process may tune other rows."""
    before = tuning_record(experiment.name)
    columns = _entries(experiment, before)
    for candidate in candidates:
        columns.setdefault(candidate.place, {})[candidate.row.label] = candidate.document()
    chosen = {
        column: {row: entry["chosen"] for row, entry in rows.items() if entry["chosen"] is not None}
        for column, rows in columns.items()
    }
    known = {label for rows in columns.values() for label in rows}
    terms = {
        **(before["terms"] if before else {}),
        **{row.label: row_terms(experiment, row) for row in experiment.rows()},
    }
    document = {
        "schema": TUNING_SCHEMA,
        "experiment": experiment.name,
        "command": f"equipoise tune {experiment.name}",
        "terms": {label: found for label, found in terms.items() if label in known},
        "budget": {"trials": tuning.trials, "seeds": list(seeds(experiment, tuning))},
        "selection": experiment.selection,
        "search": tuning.search.model_dump(mode="json"),
        "chosen": chosen,
        "columns": columns,
    }
    write_atomically(tuning_file(experiment.name), json.dumps(document, indent=2, allow_nan=False) + "\n")


def _report(columns: Mapping[str, Mapping[str, Document]], candidates: Sequence[Candidate]) -> str:
    """Return the table of validation accuracies in %, untuned and tuned, with what was chosen."""
    from tabulate import tabulate

    lines = [
        [item.place, item.row.label, *_outcome(columns[item.place][item.row.label])]
        for item in candidates
        if item.row.label in columns.get(item.place, {})
    ]
    heads = ["column group", "row", "untuned, val %", "tuned, val %", "chosen", "trials"]
    return tabulate(lines, heads, "simple", disable_numparse=True)


def _outcome(entry: Document) -> Iterator[str]:
    """Yield the cells of a row: untuned and best accuracy, what was chosen, how many trials there were."""
    trials, chosen = entry["trials"], entry["chosen"]
    scores = [trial["score"] for trial in trials if trial["score"] is not None]
    for score in (trials[0]["score"], max(scores) if chosen else None):
        yield "-" if score is None else f"{score:.2f}"
    if chosen:
        values = {**chosen["protocol"], **chosen["options"]}
        yield ", ".join(f"{name}={value}" for name, value in values.items()) or "untuned values"
    else:
        yield "nothing yet"
    failed = len(trials) - len(scores)
    yield f"{len(trials)}, {failed} failed" if failed else str(len(trials))
