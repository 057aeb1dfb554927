"""Experiments as declared in the workspace's `params.yaml`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmark.errors import DataError, SchemaError, UsageError, unknown_name
from benchmark.paths import PARAMS_FILE, prepared_home, results_home, workspace
from benchmark.protocol import Experiment, Row, digest, validated
from benchmark.registry import DATASETS

TUNING_SCHEMA = 2
"""Of the file in which `equipoise tune` keeps its trials and choices."""

QUICK = "_quick"
"""What follows an experiment's name in that of its quick version."""


@cache
def _declared(file: Path, modified: int) -> dict[str, dict[str, Any]]:  # noqa: ARG001 - `modified` keeps the cache honest
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from None
    declared = content.get("experiments") if isinstance(content, dict) else None
    if not isinstance(declared, dict):
        raise UsageError(f"{file} has no `experiments:` mapping. Add one experiment per key.")
    return declared


def experiment_names() -> list[str]:
    """Return the names of all declared experiments, in the order of the file."""
    file = workspace() / PARAMS_FILE
    return list(_declared(file, file.stat().st_mtime_ns))


def load_experiment(name: str, *, untuned: bool = False) -> Experiment:
    """Return the validated experiment, with the values that tuning chose unless it is wanted `untuned`.

    The name of another one followed by `_quick` is its quick version. Raises UsageError for an unknown name or a wrong
    field, and whatever `tuned` raises.
    """
    file = workspace() / PARAMS_FILE
    declared = _declared(file, file.stat().st_mtime_ns)
    whole = name.removesuffix(QUICK)
    if name not in declared and whole in declared:
        return quick(load_experiment(whole, untuned=True))
    if name not in declared:
        raise unknown_name("experiment", name, declared)
    fields = declared[name]
    if not isinstance(fields, dict):
        raise UsageError(f"Experiment {name!r} in {file} must be a mapping. Found {fields!r}.")
    experiment = validated(Experiment, {"name": name, **fields}, f"Experiment {name!r} in {file}")
    return experiment if untuned or experiment.tuning is None else tuned(experiment)


def quick(experiment: Experiment) -> Experiment:
    """Return an experiment's rehearsal: three epochs, three seeds, untuned, its reference and the proposed methods.

    Without proposed methods the baselines stay, each with its first variant.
    """
    reference = {experiment.reference: experiment.baselines[experiment.reference]}
    proposed = {method: _first(variants) for method, variants in experiment.proposed.items()}
    others = {} if proposed else {method: _first(variants) for method, variants in experiment.baselines.items()}
    changes: dict[str, Any] = {
        "name": f"{experiment.name}{QUICK}",
        "title": f"{experiment.title} (quick version)",
        "seeds": min(experiment.seeds, 3),
        "protocol": experiment.protocol.changed({"epochs": min(experiment.protocol.epochs, 3)}),
        "baselines": {**others, **reference},
        "proposed": proposed,
        "tuning": None,
    }
    return experiment.model_copy(update=changes)


def _first(variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return dict(list(variants.items())[:1])


def absent_data(experiment: Experiment, command: str = "grid") -> dict[str, str]:
    """Return, for each of its datasets that is not on this machine, what brings it here before `command` again."""
    absent = {}
    for name in experiment.datasets:
        needs_fetching = bool(DATASETS.load(name).card.sources)
        if needs_fetching and not (prepared_home(name) / "meta.json").is_file():
            fetched = [name, *(experiment.backbones if name in experiment.weights else ())]
            commands = [*(f"fetch {source}" for source in fetched), f"prepare {name}", f"{command} {experiment.name}"]
            absent[name] = "the data are not on this machine: " + ", ".join(f"`equipoise {c}`" for c in commands)
    return absent


def tuning_file(name: str) -> Path:
    """Return the file in which `equipoise tune` keeps its trials and choices."""
    return results_home() / "tuning" / f"{name}.json"


def row_terms(experiment: Experiment, row: Row) -> str:
    """Return the digest (sha256 hex) of what a row's chosen values depend on: budget, search space and protocol.

    The rows of other methods are no part of it, nor is what those may vary.
    """
    assert experiment.tuning is not None
    return digest(
        {
            "budget": [experiment.tuning.trials, experiment.tuning.seeds],
            "space": experiment.tuning.search.space(row),
            "options": row.settings,
            "protocol": experiment.protocol.model_dump(mode="json"),
            "selection": experiment.selection,
        }
    )


def stale_rows(experiment: Experiment, terms: Mapping[str, str]) -> list[str]:
    """Return the labels of the rows that were tuned under other terms than the experiment's."""
    return [
        row.label for row in experiment.rows() if row.label in terms and terms[row.label] != row_terms(experiment, row)
    ]


def tuning_record(name: str) -> dict[str, Any] | None:
    """Return what `equipoise tune` wrote about an experiment, None before it has run.

    Raises DataError for a damaged file and SchemaError for one of another version.
    """
    file = tuning_file(name)
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = found["schema"]
        for part in ("terms", "chosen", "columns"):
            dict(found[part])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no record of a tuning ({error}). Restore it or tune again.") from None
    if schema != TUNING_SCHEMA:
        raise SchemaError(
            f"{file} has schema {schema!r}; this version reads {TUNING_SCHEMA}. Upgrade equipoise, or remove "
            f"it and run `equipoise tune {name}`."
        )
    return found


def tuned(experiment: Experiment) -> Experiment:
    """Return the experiment with the values that tuning chose for its rows, unchanged where it has not run.

    Raises UsageError for values chosen under another budget, search space or protocol, and what `tuning_record` raises.
    """
    found = tuning_record(experiment.name)
    if found is None:
        return experiment
    file = tuning_file(experiment.name)
    stale = stale_rows(experiment, found["terms"])
    if stale:
        raise UsageError(
            f"{file}: {', '.join(stale)} tuned under another budget, search space or protocol than experiment "
            f"{experiment.name!r} now has. Run `equipoise tune {experiment.name}`, or restore the experiment."
        )
    return validated(Experiment, {**dict(experiment), "tuned": found["chosen"]}, f"Tuned values in {file}")
