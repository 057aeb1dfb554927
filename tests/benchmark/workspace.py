"""A workspace of its own for the project's experiments: commands run there, and what training there gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmark.paths import SOURCE_ROOT


def new_workspace(home: Path) -> Path:
    """Return an empty folder that has the project's experiments."""
    home.mkdir(exist_ok=True)
    (home / "params.yaml").symlink_to(SOURCE_ROOT / "params.yaml")
    return home


def equipoise(home: Path, *arguments: str) -> str:
    """Give a command of `equipoise` there and return what it printed; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", *arguments],
        env={**os.environ, "EQUIPOISE_HOME": str(home), "PYTHONPATH": str(SOURCE_ROOT)},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trained(files: Iterable[Path]) -> dict[str, Any]:
    """Return what training gave, by cell, of files of results, without what time and place add to it."""
    records = [json.loads(file.read_text()) for file in files]
    return {record["key"]: (record["epochs"], record["options"], record["steps"]) for record in records}
