"""The golden cell: training semantics do not change without a new protocol version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.conformance_task import BATCH, EPOCHS, Widths, check_parts, check_task
from benchmark.protocol import Optimizer, Protocol, Schedule
from benchmark.registry import METHODS
from benchmark.training import fit
from benchmark.version import PROTOCOL_VERSION

GOLDEN = Path(__file__).parent / "golden.json"


def golden_cell(name: str) -> dict[str, Any]:
    method = METHODS.load(name)
    task = check_task(2, Widths.EQUAL)
    protocol = Protocol(
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=Optimizer(lr=0.05, weight_decay=0.01),
        schedule=Schedule(name="cosine"),
        clip_norm=1.0,
    )
    run = fit(method(method.Options(), task), check_parts(2), protocol, 0)
    last = run.epochs[-1]
    return {
        "steps": run.steps,
        "loss": [round(record["loss"], 6) for record in run.epochs],
        "val_loss": round(last["val"]["loss"], 6),
        "balance_factor": round(last["balance_factor"], 5),
        "energy": {modality: round(value, 9) for modality, value in last["energy"].items()},
        "cosine": round(last["cosine"]["mean"], 5),
    }


def test_the_golden_cells_train_as_this_protocol_version_says() -> None:
    golden = json.loads(GOLDEN.read_text())
    now: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "defaults": Protocol(epochs=1).model_dump(mode="json"),
        "joint": golden_cell("joint"),
        "rgm": golden_cell("rgm"),
    }
    advice = (
        "Training semantics changed. If that is meant, bump PROTOCOL_VERSION in benchmark/version.py and replace "
        f"{GOLDEN.name} by:\n{json.dumps(now, indent=1)}"
    )
    assert golden["protocol_version"] == PROTOCOL_VERSION, advice
    # A cell's key leaves out what has its default: a new field may come, but no default may change.
    assert golden["defaults"].items() <= now["defaults"].items(), advice
    for name in ("joint", "rgm"):
        for field, value in golden[name].items():
            # Another processor sums in another order; another semantics is far from this.
            assert now[name][field] == pytest.approx(value, rel=1e-4, abs=1e-7), f"{name}.{field}: {advice}"
