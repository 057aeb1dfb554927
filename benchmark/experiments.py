"""Experiments as declared in the workspace's `params.yaml`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmark.errors import DataError, UsageError, unknown_name
from benchmark.paths import PARAMS_FILE, prepared_home, results_home, workspace
from benchmark.protocol import Experiment, digest, validated
from benchmark.registry import DATASETS


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


def load_experiment(name: str) -> Experiment:
    """Return the validated experiment; raises UsageError for an unknown name or a wrong field."""
    file = workspace() / PARAMS_FILE
    declared = _declared(file, file.stat().st_mtime_ns)
    if name not in declared:
        raise unknown_name("experiment", name, declared)
    fields = declared[name]
    if not isinstance(fields, dict):
        raise UsageError(f"Experiment {name!r} in {file} must be a mapping. Found {fields!r}.")
    experiment = validated(Experiment, {"name": name, **fields}, f"Experiment {name!r} in {file}")
    return tuned(experiment) if experiment.tuning else experiment


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


def tuning_terms(experiment: Experiment) -> str:
    """Return the digest (sha256 hex) of what chosen values depend on: budget, search space and protocol."""
    assert experiment.tuning is not None
    tuning = experiment.tuning.model_dump(mode="json")
    # A search space may be shared with experiments that have other rows: those change nothing here.
    methods = {row.method for row in experiment.rows()}
    tuning["search"]["methods"] = {n: found for n, found in tuning["search"]["methods"].items() if n in methods}
    return digest(
        {
            "tuning": tuning,
            "protocol": experiment.protocol.model_dump(mode="json"),
            "selection": experiment.selection,
        }
    )


def tuned(experiment: Experiment) -> Experiment:
    """Return the experiment with the values that tuning chose for its rows, unchanged where it has not run.

    Raises UsageError for values chosen under another budget, search space or protocol, DataError for a damaged file.
    """
    file = tuning_file(experiment.name)
    if not file.is_file():
        return experiment
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        terms, chosen = found["terms"], found["chosen"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no record of a tuning ({error}). Restore it or tune again.") from None
    if terms != tuning_terms(experiment):
        raise UsageError(
            f"{file} was tuned under another budget, search space or protocol than experiment {experiment.name!r} "
            f"now has. Remove it and run `equipoise tune {experiment.name}`, or restore the experiment."
        )
    return validated(Experiment, {**dict(experiment), "tuned": chosen}, f"Tuned values in {file}")
