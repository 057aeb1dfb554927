"""Hand-made result records of experiments, for the figures."""

from __future__ import annotations

import json
import random
from typing import Any

from benchmark.figures.group import Group, groups
from benchmark.protocol import Cell, Experiment, validated
from benchmark.version import RESULT_SCHEMA

Record = dict[str, Any]


STRENGTHS = [f"strength_of_relearning_{number}" for number in range(24)]
"""Options of every made-up method, 0 by default."""


def experiment(**changes: Any) -> Experiment:
    fields = {
        "name": "fixture",
        "title": "Fixture",
        "datasets": ["digits"],
        "backbones": ["small"],
        "seeds": 2,
        "protocol": {"epochs": 2},
        "baselines": {"joint": None, "pcgrad": {"losses": {"tasks": "losses"}}},
        "proposed": {"rgm": None},
        **changes,
    }
    return validated(Experiment, fields, "fixture")


def many(rows: int, epochs: int = 3) -> Experiment:
    """An experiment of so many rows, with names as long as the longest of a real one."""
    variants = {f"diagnosing_relearning {number}": {"number": number} for number in range(rows - 2)}
    return experiment(baselines={"joint": None, "pcgrad": variants}, protocol={"epochs": epochs})


def sweep(rows: int, epochs: int = 3) -> Experiment:
    """A row with the defaults, and others that change one option each."""
    variants = {name: {name: 0.5} for name in STRENGTHS[: rows - 1]}
    return experiment(
        baselines={"joint": None}, proposed={"rgm": {"default": {}, **variants}}, protocol={"epochs": epochs}
    )


def hosts(rows: int, epochs: int = 3) -> Experiment:
    """Rows with and without a modulation, so many in all, on three target domains."""
    variants = {f"diagnosing_relearning {number}": {"number": number} for number in range(rows // 2)}
    return experiment(
        datasets=["digits_dg"],
        targets=["all"],
        protocol={"epochs": epochs},
        reference="rna_net",
        baselines={"rna_net": variants},
        proposed={"rna_net+gmp": variants},
    )


def features(seed: int, count: int = 4) -> dict[str, Any]:
    """Three classes far apart from each other, in two source domains and the target, which are not apart at all."""
    source = random.Random(seed)
    labels = [number % 3 for number in range(3 * count)]
    return {
        "sources": ["r0", "r30"],
        "labels": labels,
        "domains": [place for place in (0, 1, None) for _ in range(count)],
        "values": [[9.0 * label + source.random(), 5.0 * (label == 1) + source.random()] for label in labels],
        "variance": 0.953,
    }


def record(cell: Cell, **changes: Any) -> Record:
    """A run whose best validation epoch is the first one; every seed adds 1 to energies and 0.02 to accuracies."""
    seed = cell.seed
    history = []
    for epoch in range(cell.protocol.epochs):
        accuracy = 0.8 - 0.1 * epoch + 0.02 * seed
        part = {"accuracy": accuracy, "missing": {"upper": accuracy - 0.3, "lower": accuracy - 0.1 - 0.02 * seed}}
        history.append(
            {
                "epoch": epoch,
                "loss": 2.0 / (1 + epoch),
                "val": part,
                "test": part,
                "energy": {"upper": 1.0 + epoch + seed, "lower": 4.0 + epoch + seed},
                "balance_factor": 0.5,
                "cosine": {"mean": 0.1 * epoch, "q10": 0.0, "q50": 0.0, "q90": 0.0},
                "notes": {"log rho, upper": 0.5 + epoch + seed, "log rho, lower": -0.5 - epoch, "warmth": 0.25},
                "plane": [[0.5, 0.9 - 0.1 * epoch, 0.25], [1.0, 0.8 - 0.1 * epoch, -0.25]],
            }
        )
    return {
        "schema": RESULT_SCHEMA,
        "key": f"key-{cell.describe()}",
        "cell": json.loads(json.dumps(cell.identity())),
        "options": {**dict.fromkeys(STRENGTHS, 0.0), **cell.options},
        "protocol": cell.protocol.model_dump(mode="json"),
        "modalities": ["upper", "lower"],
        "epochs": history,
        "final": {rule: {"features": features(seed)} for rule in ("best_val", "last")},
        "balance_factor": 0.25 + 0.5 * seed,
        "steps": 10,
        "provenance": {"commit": "c0ffee", "dirty": False, "versions": {"python": "3.11.9"}, "device": "cpu: fake"},
        **changes,
    }


def records(of: Experiment) -> list[Record]:
    return [record(cell) for cell in of.cells()]


def only(of: Experiment, made: list[Record]) -> Group:
    [group] = groups(of, made)
    return group
