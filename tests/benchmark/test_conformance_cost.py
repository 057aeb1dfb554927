"""A step costs what the declared passes predict, within 15 %; and the check can fail."""

from __future__ import annotations

import time

import pytest
import torch

from baselines.joint import Joint
from benchmark import conformance_cost
from benchmark.conformance import CHECKS, Record, check_method, cost_table, run
from benchmark.conformance_cost import COST_TOLERANCE, Convolutions, cost_as_declared, cost_task, measured_cost
from benchmark.conformance_trial import Cost, Outcome, Trial
from benchmark.context import Context
from benchmark.data import Batch
from benchmark.method import Passes, Plan
from benchmark.registry import METHODS


@pytest.mark.timing
@pytest.mark.parametrize("name", METHODS.names())
def test_a_step_costs_what_the_declared_passes_predict(name: str) -> None:
    record = next(check_method(METHODS.load(name), name, checks={"cost": CHECKS["cost"]}))
    assert record.outcome is Outcome.PASSED, record.reason


class Twice(Joint):
    """Encodes every batch once more, and declares it."""

    def step(self, batch: Batch, ctx: Context) -> None:
        ctx.forward(batch)
        super().step(batch, ctx)

    def expected_passes(self, plan: Plan) -> Passes:
        return Passes(2.0, 1.0)


@pytest.mark.timing
def test_a_pass_costs_what_it_counts() -> None:
    cost = measured_cost(Trial(Twice, {}))
    assert abs(cost.deviation) <= COST_TOLERANCE, cost
    assert Cost(Passes(), cost.measured).deviation > COST_TOLERANCE, "undeclared, the pass would be found"


BAND = [(0.84, "failed"), (0.86, "passed"), (1.14, "passed"), (1.16, "failed")]


@pytest.mark.parametrize(("measured", "outcome"), BAND)
def test_the_band_is_fifteen_percent_either_way(measured: float, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COST_TOLERANCE == 0.15
    monkeypatch.setattr(conformance_cost, "measured_cost", lambda *_: Cost(Passes(1, 2), 5 / 3 * measured))
    found = cost_as_declared(Trial(Joint, {}))
    assert found.outcome == outcome
    assert found.reason.endswith("x joint per step, declared 1.67x" if outcome == "passed" else "more than 15% off")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA the clock is the one on the wall")
def test_a_process_that_sleeps_costs_nothing_on_the_cpu() -> None:
    class Sleeper(Joint):
        def step(self, batch: Batch, ctx: Context) -> None:
            time.sleep(0.2)  # several times as long as the step
            super().step(batch, ctx)

    # What runs meanwhile leaves the step cold memory; by the clock on the wall it would cost several steps.
    assert measured_cost(Trial(Sleeper, {}), rounds=1).measured < 2


def test_the_encoder_of_the_cost_check_has_few_parameters() -> None:
    assert sum(parameter.numel() for parameter in Convolutions((1, 16, 16)).parameters()) == 46_560
    assert cost_task(2).widths == {"m0": 32, "m1": 32}


def test_the_costs_end_the_output_as_a_table() -> None:
    records = [
        Record("joint", "finite", Outcome.PASSED),
        Record("joint", "cost", Outcome.PASSED, "", Cost(Passes(), 1.01)),
        Record("mmpareto", "cost", Outcome.PASSED, "", Cost(Passes(1, 2), 1.7)),
    ]
    assert cost_table(records).splitlines() == [
        "method      forward    backward    declared    measured",
        "--------  ---------  ----------  ----------  ----------",
        "joint          1.00        1.00        1.00        1.01",
        "mmpareto       1.00        2.00        1.67        1.70",
    ]


def test_without_costs_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cost_table([Record("digits", "opens", Outcome.PASSED)]) == ""
    run(["digits"])
    assert "Encoder passes" not in capsys.readouterr().out
