"""Cells that are really trained, by the command that users give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmark.workspace import equipoise, new_workspace, trained


def trained_on(executor: str, home: Path) -> dict[str, Any]:
    """Train three cells of a new workspace on an executor and return what that gave, by cell."""
    output = equipoise(new_workspace(home), "grid", "digits_quick", "--method", "joint", "--executor", executor)
    assert "3 cells: 0 finished before, 3 finished now, 0 failed" in output
    return trained(home.glob("results/cells/**/*.json"))
