"""Diagnosing and Re-learning: purity, strength and the return towards the initial weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.diagnosing_relearning import (
    DiagnosingRelearning,
    cluster,
    pull_back,
    purity,
    relearning_epochs,
    strength,
)
from benchmark.context import Context, Run
from benchmark.data import Part
from benchmark.method import Method, Passes, Plan
from benchmark.model import same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import fit, initialised
from tests.baselines.scenes import resumes

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
CLUSTERS_TRAIN = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 1])
CLUSTERS_VAL = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 0, 0])


def test_worked_clusters_have_purity_09_and_06() -> None:
    assert purity(LABELS, CLUSTERS_TRAIN) == pytest.approx(0.9, abs=1e-12)
    assert purity(LABELS, CLUSTERS_VAL) == pytest.approx(0.6, abs=1e-12)


def test_worked_gap_at_lambda_3_gives_strength_0716298() -> None:
    gap = purity(LABELS, CLUSTERS_TRAIN) - purity(LABELS, CLUSTERS_VAL)
    assert strength(gap, 3.0) == pytest.approx(0.716298, abs=5e-7)


def test_worked_weight_between_init_05_and_current_minus_125_becomes_0003521() -> None:
    weight = {"w": torch.tensor([-1.25], dtype=torch.float64)}
    pull_back(weight, {"w": torch.tensor([0.5], dtype=torch.float64)}, strength(0.3, 3.0))
    assert weight["w"].item() == pytest.approx(0.003521, abs=5e-7)


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (0.02, (0.019997, 0.059928, 0.099668)),
        (0.05, (0.049958, 0.148885, 0.244919)),
        (0.1, (0.099668, 0.291313, 0.462117)),
        (0.5, (0.462117, 0.905148, 0.986614)),
    ],
)
def test_strength_table_for_lambda_1_3_5(gap: float, expected: tuple[float, float, float]) -> None:
    assert [strength(gap, scale) for scale in (1.0, 3.0, 5.0)] == pytest.approx(expected, abs=5e-7)


def test_strength_does_not_depend_on_the_sign_of_the_gap() -> None:
    assert strength(-0.3, 3.0) == strength(0.3, 3.0)


def test_a_class_index_that_never_occurs_does_not_lower_purity() -> None:
    assert purity(torch.tensor([0, 0, 2, 2]), torch.tensor([0, 0, 1, 1])) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_purity_is_at_least_the_largest_class_share(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (50,), generator=generator)
    clusters = torch.randint(0, 7, (50,), generator=generator)
    assert labels.bincount().max().item() / 50 <= purity(labels, clusters) <= 1.0


def test_three_separated_blobs_have_purity_one() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    features = 10.0 * torch.eye(3)[labels] + 0.1 * torch.randn(90, 3, generator=generator)
    assert purity(labels, cluster(features, 3)) == 1.0


def test_600_random_points_in_six_classes_have_purity_about_022() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 6
    assert purity(labels, cluster(torch.randn(600, 8, generator=generator), 6)) == pytest.approx(0.22, abs=0.03)


def test_clusters_do_not_change_with_scale_and_shift_of_a_feature() -> None:
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = features * torch.tensor([1.0, 2.0, 4.0, 8.0, 0.5]) + torch.tensor([0.0, 1.0, -3.0, 2.0, 5.0])
    assert torch.equal(cluster(features, 4), cluster(moved, 4))


def test_clustering_is_the_same_twice_and_leaves_the_global_generator_alone() -> None:
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
    before = torch.get_rng_state()
    assert torch.equal(cluster(features, 5), cluster(features, 5))
    assert torch.equal(torch.get_rng_state(), before)


def test_dead_features_fall_into_one_cluster_without_a_warning() -> None:
    assert cluster(torch.zeros(12, 3), 4).tolist() == [0] * 12


def test_fewer_samples_than_classes_get_one_cluster_each() -> None:
    assert sorted(cluster(torch.eye(3), 10).tolist()) == [0, 1, 2]


def _encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    initial = {name: torch.randn_like(parameter) for name, parameter in encoder.named_parameters()}
    encoder(torch.randn(3, 1, 8, 8))
    return encoder, initial


def test_strength_zero_leaves_every_tensor_bit_identical() -> None:
    encoder, initial = _encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pull_back(dict(encoder.named_parameters()), initial, strength(0.3, 0.0))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_infinite_lambda_restores_the_initial_parameters_exactly_and_keeps_the_buffers() -> None:
    encoder, initial = _encoder()
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}
    pull_back(dict(encoder.named_parameters()), initial, strength(0.01, math.inf))
    assert all(torch.equal(value, initial[name]) for name, value in encoder.named_parameters())
    assert all(torch.equal(value, buffers[name]) for name, value in encoder.named_buffers())


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (90, [20, 40, 60]),
        (100, [22, 44, 66]),
        (20, [4, 8, 12]),
        (15, [3, 6, 9]),
        (6, [1, 2, 3]),
        (3, [1]),
        (2, []),
        (1, []),
    ],
)
def test_official_period_scaled_to_the_run_ends_at_two_thirds(epochs: int, expected: list[int]) -> None:
    assert relearning_epochs(epochs, 20 / 90, 3) == expected


def test_a_period_of_the_whole_run_never_fires() -> None:
    assert relearning_epochs(30, 1.0, 3) == []


class _Encoder(nn.Module):
    width = 5

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape[0], 5), nn.BatchNorm1d(5), nn.ReLU())

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.layers(inputs)
        return hidden


TASK = Task({"a": (4,), "b": (3,)}, 3, 6, lambda _, shape: _Encoder(shape))


def _part(samples: int, seed: int, dead: str | None = None) -> Part:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 3
    inputs = {m: torch.randn(samples, *shape, generator=generator) for m, shape in TASK.shapes.items()}
    inputs["a"][:, :3] += 2 * torch.eye(3)[labels]
    return Part.from_tensors({m: 0 * x if m == dead else x for m, x in inputs.items()}, labels)


PARTS = {"train": _part(36, 0), "val": _part(15, 1), "test": _part(15, 2)}
PROTOCOL = Protocol(epochs=6, batch_size=9, optimizer=Optimizer(lr=0.05))
PLAN = Plan(6, 36, 15, ("a", "b"), 9)


def _method(**options: Any) -> DiagnosingRelearning:
    return DiagnosingRelearning(DiagnosingRelearning.Options(**options), TASK)


def _context(method: Method) -> Context:
    """Return a context after one epoch of training."""
    model = initialised(method, 0).train()
    run = Run(TASK, PLAN, PARTS["train"], PARTS["val"], 0, PROTOCOL)
    ctx = Context(run, model, method.parameters(model))
    for batch in ctx.batches():
        method.step(batch, ctx)
    return ctx


def _state(ctx: Context) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in ctx.model.state_dict().items()}


def test_initial_snapshot_draws_no_random_number() -> None:
    assert same_parameters(initialised(_method(), 3), initialised(Method(Method.Options(), TASK), 3))


def test_encoders_move_by_their_own_purity_gap_and_nothing_else_moves() -> None:
    method = _method()
    ctx = _context(method)
    before, initial = _state(ctx), method.initial
    momenta = {p: state["momentum_buffer"].clone() for p, state in ctx.optimizer.state.items()}
    purities = [method._purities(ctx, part) for part in (ctx.train, ctx.val)]
    ctx.start(2)
    method.start_epoch(ctx)
    encoders = {f"encoders.{m}.{name}" for m in "ab" for name in initial[m]}
    for name, value in ctx.model.state_dict().items():
        if name not in encoders:
            assert torch.equal(value, before[name]), name
    for m in "ab":
        amount = math.tanh(3.0 * abs(purities[0][m] - purities[1][m]))
        assert amount > 0
        for name, start in initial[m].items():
            moved = amount * start + (1 - amount) * before[f"encoders.{m}.{name}"]
            torch.testing.assert_close(ctx.model.encoder_parameters(m)[name].detach(), moved)
    assert all(torch.equal(ctx.optimizer.state[p]["momentum_buffer"], value) for p, value in momenta.items())


def test_huge_lambda_returns_to_the_initial_parameters() -> None:
    method = _method(strength=1e9)
    ctx = _context(method)
    ctx.start(2)
    method.start_epoch(ctx)
    for m in "ab":
        for name, start in method.initial[m].items():
            assert torch.equal(ctx.model.encoder_parameters(m)[name], start)


@pytest.mark.parametrize(("epoch", "moves"), [(0, False), (1, False), (2, True), (4, True), (5, False)])
def test_encoders_return_before_the_epochs_that_follow_the_schedule(epoch: int, moves: bool) -> None:
    method = _method()
    ctx = _context(method)
    before = _state(ctx)
    ctx.start(epoch)
    method.start_epoch(ctx)
    assert any(not torch.equal(value, before[name]) for name, value in _state(ctx).items()) is moves


def test_momentum_reset_drops_the_buffers_of_the_encoders_alone() -> None:
    method = _method(momentum="reset")
    ctx = _context(method)
    ctx.start(2)
    method.start_epoch(ctx)
    assert set(ctx.optimizer.state) == set(ctx.model.head.parameters())
    for batch in ctx.batches():
        method.step(batch, ctx)
    assert len(ctx.optimizer.state) == len(list(ctx.model.parameters()))


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"count": 0}, {"period": 1.0}])
def test_without_returns_training_equals_joint_bit_for_bit_and_costs_the_same(
    options: dict[str, Any],
) -> None:
    joint = fit(Method(Method.Options(), TASK), PARTS, PROTOCOL, 0)
    method = _method(**options)
    result = fit(method, PARTS, PROTOCOL, 0)
    assert result.epochs == joint.epochs
    assert same_parameters(result.model, joint.model)
    assert result.passes == method.expected_passes(PLAN) == Passes(1.0, 1.0)


def test_three_returns_in_six_epochs_cost_three_passes_over_training_and_validation_data() -> None:
    method = _method()
    for passes in (fit(method, PARTS, PROTOCOL, 0).passes, method.expected_passes(PLAN)):
        assert (passes.forward, passes.backward) == pytest.approx((1 + 3 * (36 + 15) / (36 * 6), 1.0))


def test_official_run_costs_between_1_01_and_1_03_of_joint_training() -> None:
    relative = _method().expected_passes(Plan(90, 5954, 744, ("audio", "video"), 64)).relative
    assert 1.01 < relative < 1.03


def test_interrupted_run_ends_with_the_same_metrics(tmp_path: Path) -> None:
    resumes(lambda **settings: fit(_method(), PARTS, PROTOCOL, 0, **settings), tmp_path / "run.ckpt", 3)


def test_saved_initial_parameters_replace_those_of_another_initialisation() -> None:
    first, second = _method(), _method()
    initialised(first, 0)
    initialised(second, 1)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(first.initial[m][name], second.initial[m][name]) for m in "ab" for name in first.initial[m])


def test_a_dead_modality_trains_to_the_end() -> None:
    parts = {name: _part(n, seed, dead="b") for name, n, seed in (("train", 36, 0), ("val", 15, 1), ("test", 15, 2))}
    assert len(fit(_method(), parts, PROTOCOL, 0).epochs) == 6
