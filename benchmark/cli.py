"""`equipoise`: the command line. Commands import what they need themselves, so that listing stays instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmark.errors import INTERRUPTED, EquipoiseError, UsageError, disk_full
from benchmark.executors import EXECUTORS

if TYPE_CHECKING:
    from benchmark.protocol import Cell, Experiment

FORMATS = {"md": "md", "csv": "csv", "json": "json", "latex": "tex"}
FIGURES = ("plane", "specific", "energy", "overview", "trajectories", "sensitivity", "modulation", "structure")
KINDS = ("methods", "baselines", "datasets", "backbones", "fusions", "experiments")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0 all well, 1 some cell failed, 2 the call was wrong, 130 interrupted."""
    try:
        return cli.main(arguments, prog_name="equipoise", standalone_mode=False) or 0
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EquipoiseError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_status
    except OSError as error:
        if not disk_full(error):
            raise
        from benchmark.store import storage_error

        click.echo(f"Error: {storage_error(error, error.filename or 'a file')}", err=True)
        return EquipoiseError.exit_status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="equipoise")
def cli() -> None:
    """Benchmark suite for balanced multimodal learning."""


@cli.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_names(kind: str, as_json: bool) -> None:
    """Show what is registered: name, kind, where from, first line of its docstring."""
    items = list(_experiments() if kind == "experiments" else _registered(kind))
    if as_json:
        click.echo(json.dumps(items, indent=2))
        return
    widths = {column: max((len(item[column]) for item in items), default=0) for column in ("name", "kind", "origin")}
    for item in items:
        start = "  ".join(item[column].ljust(width) for column, width in widths.items())
        click.echo(f"{start}  {item['description']}".rstrip())


def _registered(kind: str) -> Iterator[dict[str, str]]:
    from benchmark.registry import registries

    registry = registries()["methods" if kind == "baselines" else kind]
    for name in registry.names():
        entry = registry.entry(name)
        if kind != "baselines" or entry.kind == "baseline":
            yield {
                "name": name,
                "kind": entry.kind,
                "origin": entry.origin,
                "description": entry.description(),
            }


def _experiments() -> Iterator[dict[str, str]]:
    from benchmark.experiments import experiment_names, load_experiment
    from benchmark.paths import PARAMS_FILE

    for name in experiment_names():
        yield {
            "name": name,
            "kind": "experiment",
            "origin": PARAMS_FILE,
            "description": load_experiment(name).title,
        }


@cli.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Only say what is there, what would be downloaded, and what is free.")
def fetch(name: str, dry_run: bool) -> None:
    """Download and verify a dataset's files or a backbone's weights (EQUIPOISE_MIRROR: a folder to look at first)."""
    from benchmark.fetch_outcome import IncompleteError
    from benchmark.fetch_progress import console_progress
    from benchmark.fetchable import fetch_named, survey_named, terms

    given = terms(name)
    if given is not None:
        click.echo(f"Terms of {name}: {given}")
    if dry_run:
        survey = survey_named(name)
        for line in survey.lines(name) if survey else [f"{name} needs no download."]:
            click.echo(line)
        return
    try:
        with console_progress() as progress:
            found = fetch_named(name, progress=progress)
    except IncompleteError as error:
        for verification in error.found:
            click.echo(str(verification))
        raise
    for verification in found:
        click.echo(str(verification))
    if not found:
        click.echo(f"{name} needs no download.")


@cli.command()
@click.argument("dataset")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Decoding processes. Default: one per core.")
def prepare(dataset: str, jobs: int | None) -> None:
    """Turn a dataset's verified files into the prepared form; one that was stopped goes on where it was."""
    from benchmark.preparation import prepare as prepare_dataset
    from benchmark.progress import console_counts

    with console_counts() as progress:
        prepared = prepare_dataset(dataset, say=click.echo, progress=progress, jobs=jobs)
    click.echo(f"{dataset} is prepared in {prepared.folder}.")


def _parsed(_context: click.Context, _parameter: click.Parameter, settings: tuple[str, ...]) -> dict[str, Any]:
    """Read `option=value` pairs; values are YAML, as in params.yaml."""
    import yaml

    options = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{setting!r} is not of the form option=value.")
        try:
            options[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise click.BadParameter(f"{setting!r}: the value is no YAML: {' '.join(str(error).split())}") from None
    return options


@cli.command()
@click.option("--dataset", required=True)
@click.option("--method", required=True)
@click.option("--backbone", help="Default: the experiment's first.")
@click.option("--fusion", help="Default: the experiment's first.")
@click.option("--seeds", type=click.IntRange(min=1), help="Number of seeds, from 0. Default: the experiment's.")
@click.option(
    "--set",
    "options",
    multiple=True,
    callback=_parsed,
    metavar="OPTION=VALUE",
    help="An option of the method.",
)
@click.option("--target", help="Domain to leave out and to test. Default: those of the experiment, in turn.")
@click.option("--experiment", default="digits", show_default=True, help="Whose protocol to follow.")
def run(
    dataset: str,
    method: str,
    backbone: str | None,
    fusion: str | None,
    seeds: int | None,
    options: dict[str, Any],
    target: str | None,
    experiment: str,
) -> int:
    """Train one method on one dataset and show its test metrics."""
    from benchmark.experiments import load_experiment
    from benchmark.grid import complete
    from benchmark.protocol import Cell
    from benchmark.registry import BACKBONES, DATASETS, FUSIONS, METHODS
    from benchmark.store import Store

    recipe = load_experiment(experiment)
    names = {
        "dataset": DATASETS.entry(dataset).name,
        "method": METHODS.entry(method).name,
        "backbone": BACKBONES.entry(backbone or recipe.backbones[0]).name,
        "fusion": FUSIONS.entry(fusion or recipe.fusions[0]).name,
    }
    cells = [
        Cell(**names, options=options, protocol=recipe.protocol, seed=seed, target=left_out)
        for left_out in ((target,) if target else recipe.targets_of(dataset) or (None,))
        for seed in range(seeds or recipe.seeds)
    ]
    store = Store()
    tally = complete(cells, f"{dataset}/{method}", store=store)
    for line in _scores(recipe, [(cell, store.read(cell)) for cell in cells]):
        click.echo(line)
    return tally.exit_status


def _scores(recipe: Experiment, results: Sequence[tuple[Cell, dict[str, Any] | None]]) -> Iterator[str]:
    """Yield the experiment's metrics of every finished cell."""
    from benchmark.scores import score

    rule = recipe.selection
    yield f"Test metrics, epoch selected by {rule}:"
    for cell, record in results:
        if record is not None:
            found = {metric: score(record, metric, rule) for metric in recipe.metrics}
            numbers = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
            yield f"{f'target {cell.target}  ' if cell.target else ''}seed {cell.seed}  {numbers}"


_quick = click.option(
    "--quick", is_flag=True, help="Its quick version, EXPERIMENT_quick: the main rows, three epochs, three seeds."
)


def _loaded(experiment: str, quick: bool) -> Experiment:
    from benchmark.experiments import QUICK, load_experiment

    return load_experiment(f"{experiment}{QUICK}" if quick else experiment)


_executor = click.option(
    "--executor",
    type=click.Choice(list(EXECUTORS)),
    default="local",
    show_default=True,
    help="Where cells are trained: this machine, or a cluster (docs/executors.md).",
)
_jobs = click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Cells side by side. Default: as many as the cores or GPUs hold."
)


@cli.command()
@click.argument("experiment")
@_quick
@_executor
@_jobs
@click.option("--method", "methods", multiple=True, help="Only this method's cells; may be repeated.")
def grid(experiment: str, quick: bool, executor: str, jobs: int | None, methods: tuple[str, ...]) -> int:
    """Train every cell of an experiment that has no result yet."""
    from benchmark.grid import fill

    return fill(_loaded(experiment, quick), methods, jobs, executor=executor)


@cli.command()
@click.argument("experiment")
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    help="Stop after this many trials per row, at most those declared, to go on later. A row chooses its values when "
    "it has had all that are declared.",
)
@_executor
@_jobs
@click.option("--method", "methods", multiple=True, help="Only this method's rows, the others stay; may be repeated.")
def tune(experiment: str, budget: int | None, executor: str, jobs: int | None, methods: tuple[str, ...]) -> int:
    """Choose the values of every row on validation data, with the budget that the experiment declares."""
    from benchmark.experiments import load_experiment
    from benchmark.tuning import tune as tune_rows

    return tune_rows(load_experiment(experiment, untuned=True), budget, methods, jobs, executor=executor)


@cli.command()
@click.argument("experiment", required=False)
def status(experiment: str | None) -> int:
    """Count the cells that are done, running, failed, stale (their sources changed) or missing."""
    from tabulate import tabulate

    from benchmark.experiments import experiment_names, load_experiment
    from benchmark.store import State, Store

    store = Store()
    failed = False
    for name in [experiment] if experiment else experiment_names():
        loaded = load_experiment(name)
        lines, reasons = [], []
        for row in loaded.rows():
            cells = [cell for column in loaded.columns() for cell in loaded.cells_of(row, column)]
            found = [store.status(cell) for cell in cells]
            lines.append([row.label, *(sum(item.state is state for item in found) for state in State)])
            reasons += [
                f"failed: {cell.describe()}: {item.reason}"
                for cell, item in zip(cells, found, strict=True)
                if item.state is State.FAILED
            ]
        totals = ["all", *(sum(column) for column in zip(*(line[1:] for line in lines), strict=True))]
        click.echo(tabulate([*lines, totals], [name, *State], "simple"))
        click.echo("".join(f"{reason}\n" for reason in reasons))
        failed = failed or bool(reasons)
    return int(failed)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Show what would be removed.")
@click.option(
    "--undeclared",
    is_flag=True,
    help="Also checkpoints and failures of cells that no experiment in params.yaml has. They may belong to another "
    "branch, an edit to be undone, `equipoise run` or another workspace with the same results: only you know.",
)
def clean(dry_run: bool, undeclared: bool) -> None:
    """Remove what dead processes left: half-written files, and unfinished business of finished cells."""
    from benchmark.cleaning import clean as sweep
    from benchmark.cleaning import declared_keys
    from benchmark.paths import results_home

    total = 0
    for leftover in sweep(results_home(), declared_keys() if undeclared else None, dry_run=dry_run):
        click.echo(f"{leftover.path}  {leftover.size:,} bytes  {leftover.reason}")
        total += leftover.size
    click.echo(f"{total:,} bytes {'would be' if dry_run else 'were'} freed.")


@cli.command()
@click.argument("experiment")
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="md", show_default=True)
@click.option(
    "--selection",
    type=click.Choice(["best_val", "last", "best_test"]),
    help="Default: the experiment's rule.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Also write all formats into this folder."
)
@click.option(
    "--against",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Compare with this table (JSON), cell by cell.",
)
@_quick
def table(experiment: str, form: str, selection: Any, out: Path | None, against: Path | None, quick: bool) -> None:
    """Print an experiment's table from the cells that are finished."""
    from benchmark.experiments import absent_data
    from benchmark.published import published_for
    from benchmark.rendering import render
    from benchmark.store import Store
    from benchmark.tables import build_table

    loaded, store = _loaded(experiment, quick), Store()
    cells = list(loaded.cells())
    built = build_table(
        loaded,
        store.records(cells),
        selection,
        published_for(loaded),
        store.failures(cells),
        absent_data(loaded),
    )
    click.echo(render(built, form))  # type: ignore[arg-type]
    texts = {f"{loaded.name}.{suffix}": render(built, name) for name, suffix in FORMATS.items()} if out else {}  # type: ignore[arg-type]
    if against:
        from benchmark.reference import compare_tables, load_table

        match = compare_tables(json.loads(render(built, "json")), load_table(against))
        click.echo(match.to_markdown())
        texts[f"{loaded.name}_reference.md"] = match.to_markdown()
    if out:
        from benchmark.store import write_atomically

        for name, text in texts.items():
            write_atomically(out / name, text)


@cli.command()
@click.argument("name", type=click.Choice([*FIGURES, "all"]))
@click.argument("experiment", default="digits")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Default: results/figures.")
@_quick
def figure(name: str, experiment: str, out: Path | None, quick: bool) -> None:
    """Draw a figure from the finished cells of an experiment (default: digits); `all` draws every one that it has."""
    from benchmark.figures import write
    from benchmark.figures.group import NothingToDraw
    from benchmark.paths import results_home
    from benchmark.store import Store

    loaded = _loaded(experiment, quick)
    records = Store().records(loaded.cells())
    for one in FIGURES if name == "all" else (name,):
        try:
            files = write(one, loaded, records, out or results_home() / "figures")
        except NothingToDraw as reason:
            if name != "all":
                raise
            click.echo(f"No {one}: {reason}", err=True)
            continue
        for file in files:
            click.echo(file)


@cli.command()
@click.argument("names", nargs=-1, metavar="[METHOD OR DATASET]...")
@click.option("--all", "every", is_flag=True, help="Every registered method and dataset.")
def check(names: tuple[str, ...], every: bool) -> int:
    """Check that methods and datasets keep their contract; prints one record per check."""
    from benchmark.errors import unknown_name
    from benchmark.registry import DATASETS, METHODS, SIGN

    known = [*METHODS.names(), *DATASETS.names()]
    if every == bool(names):
        raise UsageError(f"Name the methods or datasets to check, or give --all. Known: {', '.join(known)}.")
    for name in names:
        for part in name.split(SIGN):
            if part not in known:
                raise unknown_name("method or dataset", part, known)
    from benchmark.conformance import run as run_checks

    return run_checks(names)


@cli.command()
@click.option("--input", "dataset", metavar="DATASET", help="Measure the input of a prepared dataset instead.")
@click.option("--grid", "experiment", metavar="EXPERIMENT", help="Measure an experiment's cells per hour instead.")
@click.option("--method", "methods", multiple=True, help="Measure this one alone; several may be given.")
@click.option("--backbone", "backbones", multiple=True, help="With this one alone; several may be given.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Turns of each measurement.")
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), multiple=True, help="With --grid: cells side by side; several numbers."
)
def bench(
    dataset: str | None,
    experiment: str | None,
    methods: tuple[str, ...],
    backbones: tuple[str, ...],
    rounds: int,
    jobs: tuple[int, ...],
) -> int:
    """Measure what a step of every method costs against joint training and bare PyTorch: results/bench."""
    if dataset is not None and experiment is not None:
        raise UsageError("Give --input or --grid, not both.")
    if dataset is not None:
        from benchmark.bench_input import run as run_input

        return run_input(dataset, rounds)
    if experiment is not None:
        from benchmark.bench_grid import run as run_grid

        return run_grid(experiment, methods, backbones, jobs)
    from benchmark.bench import run as run_bench

    return run_bench(methods, backbones, rounds)


if __name__ == "__main__":
    sys.exit(main())
