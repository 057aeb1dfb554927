"""Cells that are really trained, by the command that users give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmark.paths import SOURCE_ROOT


def trained(home: Path, executor: str) -> dict[str, Any]:
    """Train three cells of a new workspace; return what training gave, by cell, without what time and place add."""
    home.mkdir()
    (home / "params.yaml").symlink_to(SOURCE_ROOT / "params.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", "grid", "digits_quick", "--method", "joint", "--executor", executor],
        env={**os.environ, "EQUIPOISE_HOME": str(home), "PYTHONPATH": str(SOURCE_ROOT)},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 cells: 0 finished before, 3 finished now, 0 failed" in done.stdout + done.stderr
    records = [json.loads(file.read_text()) for file in home.glob("results/cells/**/*.json")]
    return {record["key"]: (record["epochs"], record["options"], record["steps"]) for record in records}
