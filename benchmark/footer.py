"""The lines below a table: how to read it, how it was tested, where it comes from, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmark.comparisons import ALPHA
from benchmark.metrics import UNDEFINED_WITHOUT_ERRORS, parts_of
from benchmark.protocol import OF_PROTOCOL, Column, column_name, leaves, place_name
from benchmark.tables import Table

_BEST_VAL = "best_val, the epoch with the best validation accuracy (ties: the earliest)"
_RULES = {
    "best_val": _BEST_VAL,
    "last": "last, the last epoch",
    "best_test": (
        f"{_BEST_VAL}; the column that selects on the test part is optimistic, stands there for comparison "
        "with the literature only and takes no part in any mark"
    ),
}


def command(table: Table, form: str) -> str:
    """Return the command that regenerates the table from the finished cells."""
    return f"equipoise table {table.experiment} --format {form} --selection {table.selection}"


def short_names(columns: Sequence[Column]) -> dict[Column, str]:
    """Return a name per column group from the parts in which the groups differ; empty for a single group."""
    varying = [place for place in range(3) if len({column[place] for column in columns}) > 1]
    return {column: " · ".join(column[place] for place in varying) for column in columns}


def reasons(table: Table) -> list[str]:
    """Return the distinct reasons why published numbers are not comparable, in the order of the table."""
    found = [entry.published.reason for entry in table.entries if entry.published]
    return list(dict.fromkeys(reason for reason in found if reason))


def footer(table: Table) -> list[str]:
    """Return the lines in plain text, without the command."""
    return [
        *_reading(table),
        *_testing(table),
        *_setting(table),
        *_data(table),
        *table.notes,
        *_tuning(table),
        *_published(table),
        *_origin(table),
        *_warnings(table),
    ]


def _reading(table: Table) -> Iterator[str]:
    yield (
        f"Mean ± SD (ddof 1) over n = {table.seeds} seeds (0 to {table.seeds - 1}) on the test part. "
        "Bold: best mean; underlined: second best. (n=k): seeds missing or failed, the entry takes part in "
        "no comparison."
    )
    if any(measure.target for measure in table.measures):
        yield (
            "Every target domain is left out of training and of the selection, which sees other domains' val "
            "parts; its test part alone is tested. A seed's number is the mean over the targets; columns of single "
            "targets stand beside it."
        )
    tags = ", ".join(row.tag for row in table.rows if row.proposed)
    sides = "worse / better than" if table.measures[0].lower else "below / above"
    arrows = f"↓P / ↑P: significantly {sides} proposed row P ({tags}). " if tags else ""
    yield (f"† / ‡: significantly better / worse than {table.reference}. {arrows}≈: not distinguishable from the best.")
    if any(parts_of(measure.metric)[1] for measure in table.measures):
        yield "A modality alone: predicted from its features, the others zero; a row trained without it has none."
    lower = [measure.label for measure in table.measures if measure.lower]
    if lower:
        yield f"Lower is better: {', '.join(lower)}."
    undefined = [measure.label for measure in table.measures if measure.metric in UNDEFINED_WITHOUT_ERRORS]
    if undefined:
        yield f"Undefined for a seed whose predictions are all right or all wrong: {', '.join(undefined)}."
    if table.ranks:
        yield (
            f"Mean rank over the {len(table.columns)} column groups (1 is best) of the complete rows, "
            "with 95 % bounds of a bootstrap over seeds, stratified by row and column group."
        )


def _count(comparisons: int) -> str:
    return "1 comparison" if comparisons == 1 else f"{comparisons} comparisons"


def _testing(table: Table) -> Iterator[str]:
    measure = table.measures[0].label
    yield (
        f"Test: Welch's two-sided t test on {measure}, Holm inside each family and column group, "
        f"alpha = {ALPHA}. Families declared beforehand: every row against {table.reference} "
        f"({_count(table.families['reference'])}), proposed against baselines "
        f"({_count(table.families['proposed'])}). "
        "≈ is a third family, chosen after looking: every row against the best."
    )
    if table.detectable:
        names, largest = short_names(table.columns), max(table.families.values())
        found = "; ".join(
            f"{names[item.column]}{': ' if names[item.column] else ''}{item.single:.2f} by one comparison, "
            f"{item.family:.2f} at Holm's first step (of {largest})"
            for item in table.detectable
        )
        yield (
            f"Smallest detectable difference in {measure} (power 0.8, {table.seeds} seeds per arm, pooled SD): {found}."
        )


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={'none' if value is None else value}" for name, value in leaves(settings))


def _setting(table: Table) -> Iterator[str]:
    data, backbones, fusions = (
        ", ".join(dict.fromkeys(column[place] for column in table.columns)) for place in range(3)
    )
    protocol = {**table.protocol, "split": table.protocol["split"] or "dataset's default"}
    yield (f"Data: {data}; backbone: {backbones}; fusion: {fusions}. Protocol: {_settings(protocol)}.")
    changed = {
        row.label: {name: value for name, value in row.options.items() if name.startswith(OF_PROTOCOL)}
        for row in table.rows
    }
    own = [f"{label}: {_settings(settings)}" for label, settings in changed.items() if settings]
    if own:
        yield f"Rows with a protocol of their own: {'; '.join(own)}."
    yield f"Selection: {_RULES[table.selection]}. Balance factor: at the end of training."


def _data(table: Table) -> Iterator[str]:
    for data in table.data:
        parts = {
            part: ", ".join(f"{number:,} {what}" for what, number in data.census.get(part, {"samples": count}).items())
            for part, count in data.samples.items()
        }
        counts = "; ".join(f"{part} {numbers}" for part, numbers in parts.items())
        yield f"Samples of {data.dataset} ({data.split}): {counts}. Content: {data.digest[:12]}."


def _choices(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} in {{{', '.join(map(str, found))}}}" if isinstance(found, list | tuple) else f"{name}={found}"
        for name, found in values.items()
    )


def _tuning(table: Table) -> Iterator[str]:
    tuning = table.tuning
    if tuning is None:
        return
    shared = [_choices(tuning.search["protocol"])] if tuning.search["protocol"] else []
    own = [f"{name}: {_choices(found)}" for name, found in tuning.search["methods"].items()]
    yield (
        f"Tuned with the same budget for every row: {tuning.trials} trials, the untuned values first, each on "
        f"{tuning.seeds} seed(s) that the table does not use, by validation accuracy. "
        f"Search space: {'; '.join([*(f'every row: {text}' for text in shared), *own]) or 'empty'}."
    )
    targets = [None, *(measure.target for measure in table.measures if measure.target)]
    names = {
        place_name(column, target): " · ".join(part for part in (name, target) if part)
        for column, name in short_names(table.columns).items()
        for target in targets
    }
    for column, rows in tuning.chosen.items():
        found = [f"{row}: {_choices(values) or 'untuned values'}" for row, values in rows.items() if values is not None]
        missing = [row for row, values in rows.items() if values is None]
        where = f" on {names[column]}" if names[column] else ""
        if found:
            yield f"Chosen{where}: {'; '.join(found)}."
        if missing:
            yield f"Not tuned{where} (untuned values): {', '.join(missing)}."


def _published(table: Table) -> Iterator[str]:
    if table.published:
        yield (f"Published: {table.published} Reproduced: inside our 95 % t interval or within the declared tolerance.")
        for place, reason in enumerate(reasons(table), 1):
            yield f"[{place}] Not comparable, {reason}."


def _origin(table: Table) -> Iterator[str]:
    origin = table.origin
    versions = ", ".join(f"{name} {'/'.join(found)}" for name, found in origin.versions.items())
    yield (
        f"Commit: {', '.join(origin.commits) or 'none'}. Versions: {versions or 'none'}. "
        f"Device: {', '.join(origin.devices) or 'none'}."
    )


def _warnings(table: Table) -> Iterator[str]:
    if len(table.zero_variance) > 1:
        yield (
            f"Warning: zero variance over the seeds in {len(table.zero_variance)} entries "
            f"({', '.join(table.zero_variance)}). This is usually a seeding bug, and such entries cannot be "
            "tested against each other."
        )
    for name in dict.fromkeys(data.dataset for data in table.data):
        contents = [f"{data.digest[:12]}: {data.cells}" for data in table.data if data.dataset == name]
        if len(contents) > 1:
            yield (
                f"Warning: {name} was prepared anew between cells, with other content (cells by content: "
                f"{', '.join(contents)}). What was not trained on the same data cannot be compared: remove the "
                "results of the other cells and run the grid again."
            )
    alike: dict[tuple[Column, str, str], list[str]] = {}
    for item in table.missing:
        seeds = ", ".join(str(seed) for seed in item.seeds)
        alike.setdefault((item.column, seeds, (item.reason or "not run").rstrip(".")), []).append(item.row)
    for (column, seeds, reason), rows in alike.items():
        named = "every row" if len(rows) == len(table.rows) > 1 else ", ".join(rows)
        yield f"Missing: {named} on {column_name(column)}, seeds {seeds}: {reason}."
