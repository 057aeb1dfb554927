"""Experiments as declared in the workspace's `params.yaml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmark.errors import UsageError, unknown_name
from benchmark.paths import PARAMS_FILE, workspace
from benchmark.protocol import Experiment, validated


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
    return validated(Experiment, {"name": name, **fields}, f"Experiment {name!r} in {file}")
