"""CMRF: the worked numbers, the teacher's average and what it is used for, and what each loss reaches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.cmrf import CMRF, distillation, importances, mixture, own_shares
from baselines.joint import Joint
from benchmark.alignment import unit_distance
from benchmark.averaging import MovingAverage
from benchmark.conformance_task import BATCH, EPOCHS, TRAIN, Widths, check_parts, check_protocol, check_task
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.method import Method, Plan, total
from benchmark.model import MultimodalModel, same_parameters
from benchmark.registry import METHODS
from benchmark.training import Fit, fit, initialised
from tests.baselines.scenes import context

UNIT = {"v": torch.tensor([[1.0, 0.0]]), "a": torch.tensor([[0.0, 1.0]])}
STUDENT = {"v": torch.tensor([[1.0, 0.0]]), "a": torch.tensor([[0.6, 0.8]])}
SHARES = [torch.tensor([0.9]), torch.tensor([0.7])]
"""Of the first modality in its own mixture, and of the second in its own, where the first has 0.3."""


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


class Scalar(nn.Module):
    """One weight, and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("count", torch.tensor(0))


class TestWorkedNumbers:
    def test_students_1_2_4_8_with_t0_at_2(self) -> None:
        student = Scalar()
        teacher = MovingAverage(cast(MultimodalModel, student))
        seen = []
        for step, value in enumerate([1.0, 2.0, 4.0, 8.0], start=1):
            student.weight.data.fill_(value)
            teacher.follow(student, max(step - 2, 0))
            seen.append(float(teacher.model.weight))  # type: ignore[arg-type]
        assert seen == pytest.approx([1, 2, 3, 14 / 3])

    def test_mixtures_are_normalised(self) -> None:
        first = mixture(UNIT["v"], UNIT["a"], SHARES[0])
        second = mixture(UNIT["a"], UNIT["v"], SHARES[1])
        close(first, [[0.9, 0.1]])
        close(functional.normalize(first), [[0.993884, 0.110432]])
        close(functional.normalize(second), [[0.393919, 0.919145]])

    def test_distances_and_their_weighted_sum(self) -> None:
        close(unit_distance(mixture(UNIT["v"], UNIT["a"], SHARES[0]), STUDENT["v"]), 0.110601)
        close(unit_distance(mixture(UNIT["a"], UNIT["v"], SHARES[1]), STUDENT["a"]), 0.238044)
        found = distillation(STUDENT, UNIT, SHARES, {"v": 1.0, "a": 0.5})
        close(found, 0.229623)
        close(3 * found, 0.688868)

    def test_a_student_that_equals_an_unmixed_teacher_learns_nothing(self) -> None:
        student = {m: values.clone().requires_grad_() for m, values in UNIT.items()}
        found = distillation(student, UNIT, [torch.ones(1)] * 2, {"v": 1.0, "a": 1.0})
        found.backward()
        close(found.detach(), 0.0)
        assert all(values.grad is not None and not values.grad.any() for values in student.values())

    def test_shares_have_the_mean_of_the_conditional_distribution(self) -> None:
        shares = own_shares((2, 20_000), 0.1, torch.Generator().manual_seed(0))
        assert bool((shares > 0.5).all())
        assert shares.mean().item() == pytest.approx(0.9417, abs=0.002)
        assert (shares > 0.99).double().mean().item() == pytest.approx(0.64, abs=0.01)
        assert not torch.equal(shares[0], shares[1])


class TestInvariants:
    @pytest.mark.parametrize("seed", range(3))
    def test_the_distillation_is_at_most_twice_the_weights_of_all_ordered_pairs(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        taught, student = ({m: torch.randn(5, 4, generator=generator) for m in "abc"} for _ in range(2))
        shares = list(own_shares((6, 5), 0.1, generator))
        omega = {"a": 1.0, "b": 0.5, "c": 1.0}
        assert 0 <= distillation(student, taught, shares, omega) <= 2 * 2 * sum(omega.values())

    def test_three_modalities_have_two_targets_each(self) -> None:
        units = {m: row[None] for m, row in zip("abc", torch.eye(3), strict=True)}
        found = distillation(units, units, [torch.tensor([0.5])] * 6, dict.fromkeys("abc", 1.0))
        # Every target is half-way between two orthogonal vectors.
        close(found, 6 * (2 - 2 * 0.5**0.5) ** 0.5)

    def test_audio_counts_half_unless_all_are_equal(self) -> None:
        names = ["video", "audio", "flow"]
        assert importances(names, "half for audio") == {"video": 1.0, "audio": 0.5, "flow": 1.0}
        assert set(importances(names, "equal").values()) == {1.0}

    def test_a_mean_computes_what_the_model_does_and_has_no_parameters(self) -> None:
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
        mean = MovingAverage(cast(MultimodalModel, model))
        values = torch.randn(4, 2)
        assert torch.equal(mean.model(values), model(values))
        assert list(mean.parameters()) == []

    def test_integers_are_copied_into_a_mean(self) -> None:
        student = Scalar()
        teacher = MovingAverage(cast(MultimodalModel, student))
        student.count.fill_(7)  # type: ignore[operator]
        teacher.follow(student, 3)
        assert int(teacher.model.count) == 7  # type: ignore[arg-type]


TASK = check_task(3, Widths.UNEQUAL)
SMALL = {"hidden": 16, "out": 8}
START = 0.25
"""Share of the run's 36 steps before the teacher's mean begins: 9 steps, two epochs of four and a step."""


class Kept:
    """Keeps the student's weights after every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def keep(self, model: MultimodalModel) -> None:
        student = {name: v.clone() for name, v in model.state_dict().items() if not name.startswith("teacher.")}
        self.weights.append(student)


def run(name: str = "cmrf", kept: Kept | None = None, **options: Any) -> tuple[Method, Fit]:
    kind = METHODS.load(name)
    task = check_task(2, Widths.UNEQUAL)
    chosen = {**kind.sample_options(task), "averaging_start": START, **options}

    class Watched(kind):  # type: ignore[misc, valid-type]
        def step(self, batch: Batch, ctx: Context) -> None:
            super().step(batch, ctx)
            if kept:
                kept.keep(ctx.model)

    method = Watched(kind.Options(**chosen), task)
    return method, fit(method, check_parts(2), check_protocol(), 0)


@pytest.mark.parametrize("name", ["cmrf", "cmrf+ogm_ge"])
def test_the_teacher_is_the_mean_of_the_students_from_t0_whatever_modulates_the_steps(name: str) -> None:
    kept = Kept()
    _, trained = run(name, kept)
    assert len(kept.weights) == 36
    averaged = kept.weights[8:]
    for key, value in cast(MovingAverage, trained.model.teacher).model.state_dict().items():
        if value.is_floating_point():
            mean = torch.stack([weights[key] for weights in averaged]).double().mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(value, kept.weights[-1][key])


def test_until_t0_the_teacher_is_the_student_bit_for_bit() -> None:
    kept = Kept()
    _, trained = run(kept=kept, averaging_start=1.0)
    teacher = cast(MovingAverage, trained.model.teacher).model.state_dict()
    assert all(torch.equal(value, kept.weights[-1][key]) for key, value in teacher.items())


def test_teacher_and_student_differ_in_what_is_judged_alone() -> None:
    (_, teacher), (_, student) = run(judged="teacher"), run(judged="student")
    weights = student.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in teacher.model.state_dict().items())
    assert [e["loss"] for e in teacher.epochs] == [e["loss"] for e in student.epochs]
    same = [a["val"] == b["val"] for a, b in zip(teacher.epochs, student.epochs, strict=True)]
    assert same[:2] == [True, True]
    assert not any(same[2:])


def test_the_teachers_passes_are_those_of_steps_that_distil() -> None:
    method, trained = run()
    plan = Plan(EPOCHS, TRAIN, 21, method.task.modalities, BATCH)
    assert trained.passes.forward == pytest.approx(2 - (2 * TRAIN + BATCH) / (EPOCHS * TRAIN))
    assert method.expected_passes(plan) == trained.passes
    assert run(distillation_weight=0.0)[1].passes.forward == 1


def stepped(steps: int = 1, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Context, Batch]:
    """Return losses of a step, and the features they are of; weights stay as they were initialised."""
    method = CMRF(CMRF.Options(**SMALL | options), TASK)
    ctx = context(method, initialised(method, 0).train(), check_parts(3)["train"], 12)
    method.start_epoch(ctx)
    batch = next(ctx.batches())
    ctx.steps = steps - 1
    forward = ctx.forward(batch)
    return method.losses(forward, batch, ctx), forward.features, ctx, batch


def test_the_distillation_begins_after_t0() -> None:
    # Three epochs' worth of the task's nine are 12 steps.
    assert "distillation" not in stepped(12, averaging_start=1 / 3)[0]
    assert "distillation" in stepped(13, averaging_start=1 / 3)[0]


def test_distillation_and_contrast_reach_every_encoder_and_leave_the_teacher_alone() -> None:
    losses, features, ctx, _ = stepped(averaging_start=0.0)
    for name in ("distillation", "contrast"):
        gradients = torch.autograd.grad(losses[name], list(features.values()), retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
    total(losses).backward()
    teacher = cast(MovingAverage, ctx.model.teacher)
    assert all(value.grad is None for value in teacher.buffers())


def test_the_teacher_teaches_in_evaluation_mode() -> None:
    _, _, ctx, _ = stepped(averaging_start=0.0)
    fresh = initialised(CMRF(CMRF.Options(**SMALL), TASK), 0)
    assert same_parameters(ctx.model.get_submodule("teacher"), fresh.get_submodule("teacher"))
    assert not same_parameters(ctx.model.encoders, fresh.encoders)


def test_losses_are_weighted() -> None:
    found = stepped(averaging_start=0.0)[0]
    twice = stepped(averaging_start=0.0, distillation_weight=6.0, unimodal_weight=4.0, contrast_weight=6.0)[0]
    assert found.keys() == {"fused", "unimodal m0", "unimodal m1", "unimodal m2", "contrast", "distillation"}
    torch.testing.assert_close(twice, {name: loss * (1 + (name != "fused")) for name, loss in found.items()})


def test_audio_has_half_the_unimodal_loss() -> None:
    shapes = {"video": (1, 4, 4), "audio": (1, 4, 4)}
    task = replace(TASK, shapes=shapes, backbone=lambda _m, _shape: TASK.backbone("m0", (1, 4, 4)))
    part = check_parts(2)["train"]
    renamed = Part.from_tensors(dict(zip(shapes, part.inputs.values(), strict=True)), part.labels)
    losses = []
    for importance in ("half for audio", "equal"):
        method = CMRF(CMRF.Options(**SMALL, importance=importance), task)
        ctx = context(method, initialised(method, 0).train(), renamed, 12)
        method.start_epoch(ctx)
        batch = next(ctx.batches())
        losses.append(method.losses(ctx.forward(batch), batch, ctx))
    half, equal = losses
    torch.testing.assert_close(2 * half["unimodal audio"], equal["unimodal audio"])
    assert torch.equal(half["unimodal video"], equal["unimodal video"])


def test_without_weights_only_the_fused_loss_is_left_and_the_step_is_joint_training() -> None:
    assert stepped(2, **CMRF.noop)[0].keys() == {"fused"}
    joint = fit(Joint(Joint.Options(), check_task(2, Widths.UNEQUAL)), check_parts(2), check_protocol(), 0)
    weights = run(**cast(dict[str, Any], CMRF.noop))[1].model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in joint.model.state_dict().items())


def test_the_fused_and_the_unimodal_losses_teach_the_classes() -> None:
    method = CMRF(CMRF.Options(), TASK)
    taught = [name for name in stepped(averaging_start=0.0)[0] if method.supervises(name)]
    assert taught == ["fused", "unimodal m0", "unimodal m1", "unimodal m2"]


def test_official_starts_are_400_and_100_steps_of_the_published_runs() -> None:
    epochs, batch = 15, 16
    sources = {"epic_kitchens": (6392, 5440, 4038), "hac": (1600, 1981, 1841)}
    for name, steps in (("epic_kitchens", 400), ("hac", 100)):
        mean = sum(samples // batch for samples in sources[name]) / 3
        start = CMRF.Options.model_validate(CMRF.official[name]).averaging_start
        assert start * epochs * mean == pytest.approx(steps, rel=0.01)


def test_dropout_for_no_modality_is_refused() -> None:
    assert "has no modality flow" in str(CMRF.refuses(CMRF.Options(feature_dropout={"flow": 0.5}), TASK))
