"""Five seeds in one graph train as each does alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmark.bench import RESNET, SMALL, Workload
from benchmark.bench_seeds import SEEDS, Trial, left_alone
from benchmark.model import MultimodalModel

SHORT = (
    replace(SMALL, batch_size=8, steps=3, epochs=2),
    replace(RESNET, shapes={"audio": (1, 24, 24), "video": (3, 24, 24)}, batch_size=4, steps=2),
)


def distance(found: Tensor, expected: Tensor) -> float:
    # Of the whole: sums in another order move small entries by more than their last digits.
    return float((found - expected).detach().norm() / expected.detach().norm().clamp_min(1e-3))


@pytest.mark.parametrize("work", SHORT, ids=lambda work: work.backbone)
def test_one_graph_gives_every_seed_the_features_that_it_has_alone(work: Workload) -> None:
    trial = Trial(work)
    together, alone = trial.in_one_graph(), trial.one_by_one()
    assert isinstance(together, MultimodalModel)
    inputs = next(trial.batches(0)).inputs
    found = together.encode({name: torch.cat([values] * SEEDS, 1) for name, values in inputs.items()})
    for seed, model in enumerate(alone):
        for name, features in model.encode(inputs).items():
            own = found[name].unflatten(1, (SEEDS, -1))[:, seed]
            assert distance(own, features) < 1e-2


@pytest.mark.parametrize("work", SHORT, ids=lambda work: work.backbone)
def test_mapped_seeds_end_where_each_ends_alone(work: Workload) -> None:
    trial = Trial(work)
    together, alone = trial.mapped(), trial.one_by_one()
    for seed, model in enumerate(alone):
        for name, value in model.named_parameters():
            assert distance(together[name][seed], value) < 1e-2


def test_methods_with_a_step_or_a_memory_of_their_own_do_not_leave_the_step_alone() -> None:
    names = left_alone()
    assert "joint" in names
    assert {"rgm", "ogm_ge", "gmd", "pmr"}.isdisjoint(names)
