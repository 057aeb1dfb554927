"""Where things live: the workspace (params.yaml, results) and the data home."""

from __future__ import annotations

import os
from pathlib import Path

from benchmark.errors import UsageError

PARAMS_FILE = "params.yaml"
SOURCE_ROOT = Path(__file__).resolve().parent.parent


def workspace() -> Path:
    """Return the folder that holds `params.yaml` and `results`.

    `EQUIPOISE_HOME` decides; otherwise the nearest folder at or above the working directory with a `params.yaml`, then
    the source checkout. Raises UsageError when none of them has one.
    """
    explicit = os.environ.get("EQUIPOISE_HOME")
    here = Path.cwd()
    candidates = [Path(explicit)] if explicit else [here, *here.parents, SOURCE_ROOT]
    for folder in candidates:
        if (folder / PARAMS_FILE).is_file():
            return folder.resolve()
    raise UsageError(
        f"No {PARAMS_FILE} in {candidates[0]}{'' if explicit else ' or above it'}. "
        "Run from a clone of the project or set EQUIPOISE_HOME to one."
    )


def data_home() -> Path:
    """Return the folder of raw and prepared data: `EQUIPOISE_DATA`, or `data` in the workspace."""
    explicit = os.environ.get("EQUIPOISE_DATA")
    return Path(explicit).resolve() if explicit else workspace() / "data"


def raw_home(dataset: str) -> Path:
    """Return the folder of a dataset's raw files."""
    return data_home() / "raw" / dataset


def prepared_home(dataset: str) -> Path:
    """Return the folder of a dataset's prepared form."""
    return data_home() / "prepared" / dataset


def results_home() -> Path:
    """Return the folder of finished cells, tables and published numbers."""
    return workspace() / "results"
