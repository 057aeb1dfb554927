"""Gradient-Blending: worked numbers, invariants, and the estimation inside the loop."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from baselines.g_blending import Curve, GBlending, blend_weights, held_out_indices
from baselines.joint import Joint
from benchmark.context import Context
from benchmark.data import Part
from benchmark.errors import DataError
from benchmark.method import Method, Plan
from benchmark.model import same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import Fit, fit
from tests.baselines.scenes import DisturbableEncoder, context, resumes

CURVES = {
    "audio": Curve(1.79, 1.80, 0.60, 1.10),
    "video": Curve(1.79, 1.79, 1.20, 1.40),
    "fused": Curve(1.79, 1.80, 0.40, 1.00),
}
RISING = CURVES | {"audio": replace(CURVES["audio"], val_after=1.95)}
PREVIOUS = {"audio": 0.2, "video": 0.3, "fused": 0.5}


class TestWorkedNumbers:
    def test_gains(self) -> None:
        assert [curve.gain for curve in CURVES.values()] == pytest.approx([0.70, 0.39, 0.80])

    def test_overfittings(self) -> None:
        assert [curve.overfitting for curve in CURVES.values()] == pytest.approx([0.49, 0.20, 0.59])

    def test_overfitting_to_generalisation_ratios(self) -> None:
        ratios = [abs(curve.overfitting / curve.gain) for curve in CURVES.values()]
        assert ratios == pytest.approx([0.700000, 0.512821, 0.737500], abs=5e-7)

    def test_scores_before_normalisation(self) -> None:
        scores = [curve.gain / curve.overfitting**2 for curve in CURVES.values()]
        assert scores == pytest.approx([2.915452, 9.750000, 2.298190], abs=5e-7)

    def test_weights(self) -> None:
        weights = blend_weights(CURVES, PREVIOUS)
        assert list(weights) == ["audio", "video", "fused"]
        assert list(weights.values()) == pytest.approx([0.194836, 0.651579, 0.153585], abs=5e-7)

    def test_weights_are_not_those_of_final_losses_alone(self) -> None:
        """The default of MultiBench: G is the last held-out loss, O the last gap."""
        last = {k: replace(curve, train_before=0.0, val_before=0.0) for k, curve in CURVES.items()}
        scores = {k: -curve.gain / curve.overfitting**2 for k, curve in last.items()}
        multibench = [score / sum(scores.values()) for score in scores.values()]
        assert multibench == pytest.approx([0.104320, 0.829821, 0.065859], abs=5e-7)
        assert list(blend_weights(CURVES, PREVIOUS).values()) != pytest.approx(multibench, abs=0.01)

    def test_branch_whose_held_out_loss_rises_gets_no_weight(self) -> None:
        assert RISING["audio"].gain == pytest.approx(-0.15)
        assert RISING["audio"].overfitting == pytest.approx(1.34)
        weights = list(blend_weights(RISING, PREVIOUS).values())
        assert weights == pytest.approx([0, 0.809250, 0.190750], abs=5e-7)

    def test_size_of_a_negative_gain_earns_nothing(self) -> None:
        scores = [abs(curve.gain) / curve.overfitting**2 for curve in RISING.values()]
        absolute = [score / sum(scores) for score in scores]
        assert absolute == pytest.approx([0.006886, 0.803678, 0.189436], abs=5e-7)
        assert list(blend_weights(RISING, PREVIOUS).values()) != pytest.approx(absolute, abs=0.001)


class TestInvariants:
    def test_weights_minimise_overfitting_relative_to_gain(self) -> None:
        """Section 3 of the paper: of all blends the weights have the least (w O)^2 / (w G)^2."""
        gains = torch.tensor([curve.gain for curve in CURVES.values()])
        overfittings = torch.tensor([curve.overfitting for curve in CURVES.values()])

        def ratio(weights: torch.Tensor) -> torch.Tensor:
            return ((weights * overfittings) ** 2).sum(-1) / (weights @ gains) ** 2

        best = torch.tensor(list(blend_weights(CURVES, PREVIOUS).values()))
        others = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
        assert float(ratio(best)) <= float(ratio(others).min()) + 1e-7

    @pytest.mark.parametrize("curves", [CURVES, RISING])
    def test_weights_are_non_negative_and_sum_to_one(self, curves: dict[str, Curve]) -> None:
        weights = blend_weights(curves, PREVIOUS).values()
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1)

    @pytest.mark.parametrize("scale", [0.5, 10.0])
    def test_scaling_all_losses_leaves_the_weights(self, scale: float) -> None:
        scaled = {k: Curve(*(scale * value for value in vars(curve).values())) for k, curve in CURVES.items()}
        assert blend_weights(scaled, PREVIOUS) == pytest.approx(blend_weights(CURVES, PREVIOUS))

    def test_shifting_both_training_losses_of_a_branch_leaves_the_weights(self) -> None:
        shifted = replace(CURVES["video"], train_before=2.79, train_after=2.20)
        weights = blend_weights(CURVES | {"video": shifted}, PREVIOUS)
        assert weights == pytest.approx(blend_weights(CURVES, PREVIOUS))

    def test_branch_without_any_overfitting_has_a_bounded_weight(self) -> None:
        still = Curve(1.0, 1.0, 0.9, 0.9)
        weights = blend_weights({"audio": still, "fused": replace(still, val_after=0.91)}, PREVIOUS)
        assert weights == pytest.approx({"audio": 0.1 / 0.19, "fused": 0.09 / 0.19})

    def test_weights_stay_when_no_branch_generalises(self) -> None:
        worse = Curve(1.0, 1.0, 0.5, 1.2)
        assert blend_weights({"audio": worse, "video": worse, "fused": worse}, PREVIOUS) == PREVIOUS


class TestHeldOut:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)

    def test_tenth_of_every_class_is_held_out(self) -> None:
        held = held_out_indices(self.labels, 0.1, torch.Generator().manual_seed(0))
        assert self.labels[held].bincount().tolist() == [5, 3, 2]
        assert held.tolist() == sorted(set(held.tolist()))

    def test_size_is_exact_when_the_classes_do_not_divide(self) -> None:
        held = held_out_indices(torch.arange(100) % 7, 0.1, torch.Generator().manual_seed(0))
        assert len(held) == 10
        assert int((held % 7).bincount(minlength=7).min()) >= 1

    def test_rare_class_gives_no_more_than_its_share(self) -> None:
        labels = torch.tensor([0] * 97 + [1] * 3)
        held = held_out_indices(labels, 0.1, torch.Generator().manual_seed(0))
        assert labels[held].bincount(minlength=2).tolist() == [10, 0]

    def test_draw_follows_the_seed(self) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
        drawn = [held_out_indices(self.labels, 0.1, generator).tolist() for generator in generators]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_at_least_one_sample_is_held_out_and_one_kept(self) -> None:
        generator = torch.Generator().manual_seed(0)
        assert len(held_out_indices(torch.tensor([0, 1]), 0.01, generator)) == 1
        assert len(held_out_indices(torch.tensor([0, 1]), 0.5, generator)) == 1

    def test_single_sample_is_refused_with_the_count(self) -> None:
        with pytest.raises(DataError, match="found 1 sample"):
            held_out_indices(torch.tensor([0]), 0.1, torch.Generator())


WIDTHS = {"a": 4, "b": 5, "fused": 6}
EPOCHS = 5


def task(*modalities: str) -> Task:
    shapes = dict.fromkeys(modalities or ("a", "b"), (3,))
    return Task(shapes, 3, EPOCHS, lambda name, shape: DisturbableEncoder(shape, WIDTHS[name]))


def part(samples: int = 57) -> Part:
    """Return samples whose modalities both tell the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 3
    means = torch.eye(3)[labels]
    return Part.from_tensors({m: means + torch.randn(samples, 3, generator=generator) for m in "ab"}, labels)


def prepare(train: Part | None = None, epochs: int = EPOCHS, **options: Any) -> tuple[GBlending, Context]:
    method = GBlending(GBlending.Options(**options), task())
    torch.manual_seed(0)
    model = method.build()
    return method, context(method, model, train or part(), 16, val=part(9), epochs=epochs, optimizer=Optimizer(lr=0.1))


def train(method: Method, **settings: Any) -> Fit:
    protocol = Protocol(epochs=EPOCHS, batch_size=16, optimizer=Optimizer(lr=0.1))
    parts = {"train": part(), "val": part(9), "test": part(9)}
    return fit(method, parts, protocol, 0, **settings)


class TestEstimate:
    @pytest.mark.parametrize("heads", ["separate", "slices"])
    def test_main_model_its_optimiser_and_all_other_random_streams_stay(self, heads: str) -> None:
        method, ctx = prepare(heads=heads)
        for batch in ctx.batches():
            method.step(batch, ctx)
        model, optimizer = copy.deepcopy(ctx.model), copy.deepcopy(ctx.optimizer.state_dict())
        streams = torch.get_rng_state(), ctx.loss_count, ctx.steps
        method.start_epoch(ctx)
        assert method.weights != dict.fromkeys(("a", "b", "fused"), 1 / 3)
        assert same_parameters(model, ctx.model)
        assert ctx.model.training
        state = ctx.optimizer.state_dict()["state"]
        for key, old in optimizer["state"].items():
            assert torch.equal(old["momentum_buffer"], state[key]["momentum_buffer"])
        assert torch.equal(streams[0], torch.get_rng_state())
        assert streams[1:] == (ctx.loss_count, ctx.steps)

    def test_weights_are_non_negative_and_sum_to_one(self) -> None:
        method, ctx = prepare()
        method.start_epoch(ctx)
        assert min(method.weights.values()) >= 0
        assert sum(method.weights.values()) == pytest.approx(1)

    def test_one_modality_is_judged_without_the_other(self) -> None:
        clean = part()
        noisy = Part.from_tensors({"a": clean.inputs["a"], "b": clean.inputs["b"].flip(0)}, clean.labels)
        curves = []
        for data in (clean, noisy):
            method, ctx = prepare(data)
            method.held_out = held_out_indices(data.labels, 0.1, torch.Generator().manual_seed(0))
            curves.append(method._curves(ctx, 2))
        assert curves[0]["a"] == curves[1]["a"]
        assert curves[0]["b"] != curves[1]["b"]
        assert curves[0]["fused"] != curves[1]["fused"]

    def test_weights_follow_the_curves_under_the_floor_that_was_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        curves = dict(zip(("a", "b", "fused"), CURVES.values(), strict=True))
        monkeypatch.setattr(GBlending, "_curves", lambda *_: curves)
        for floor, expected in (
            (1e-4, [0.194836, 0.651579, 0.153585]),
            (1.0, [0.7 / 1.89, 0.39 / 1.89, 0.8 / 1.89]),
        ):
            method, ctx = prepare(floor=floor)
            method.start_epoch(ctx)
            assert list(method.weights.values()) == pytest.approx(expected, abs=5e-7)

    def test_super_epochs_of_two_start_at_epochs_0_2_and_4(self) -> None:
        method, ctx = prepare(super_epoch=0.4)
        found = []
        for epoch in range(EPOCHS):
            ctx.start(epoch)
            method.start_epoch(ctx)
            found.append((method.estimates, method.held_out.tolist()))
        assert [estimates for estimates, _ in found] == [1, 1, 2, 2, 3]
        assert len({str(held_out) for _, held_out in found}) == 1

    def test_offline_estimates_once(self) -> None:
        method, ctx = prepare(form="offline")
        for epoch in range(2):
            ctx.start(epoch)
            method.start_epoch(ctx)
        assert method.estimates == 1

    def test_run_goes_on_from_the_saved_state_without_a_new_estimate(self) -> None:
        method, ctx = prepare(super_epoch=0.4)
        method.start_epoch(ctx)
        resumed, other = prepare(super_epoch=0.4)
        resumed.load_state_dict(copy.deepcopy(method.state_dict()))
        other.start(1)
        resumed.start_epoch(other)
        assert resumed.weights == method.weights
        assert resumed.estimates == 1
        assert torch.equal(resumed.held_out, method.held_out)


class TestData:
    def seen(self, **options: Any) -> tuple[set[int], set[int]]:
        """Return the samples that one epoch trains on, and those held out."""
        method, ctx = prepare(**options)
        method.start_epoch(ctx)
        return {int(i) for batch in method.batches(ctx) for i in batch.index}, set(method.held_out.tolist())

    def test_online_never_trains_on_what_is_held_out(self) -> None:
        seen, held_out = self.seen()
        assert sorted(sample % 3 for sample in held_out) == [0, 0, 1, 1, 2, 2]
        assert seen == set(range(57)) - held_out

    def test_offline_trains_on_everything_once_the_weights_stand(self) -> None:
        seen, held_out = self.seen(form="offline")
        assert len(held_out) == 6
        assert seen == set(range(57))

    def test_fixed_weights_hold_nothing_out(self) -> None:
        assert self.seen(weights={"a": 0.2, "fused": 0.8}) == (set(range(57)), set())


class TestRun:
    def test_all_weight_on_the_fused_loss_is_joint_training_bit_for_bit(self) -> None:
        blended = train(GBlending(GBlending.Options.model_validate(GBlending.noop), task()))
        joint = train(Joint(Joint.Options(), task()))
        assert same_parameters(blended.model, joint.model)
        assert blended.epochs == joint.epochs

    def test_no_head_is_built_where_all_unimodal_weights_are_zero(self) -> None:
        _, ctx = prepare(weights={"a": 0.0, "b": 0.0, "fused": 1.0})
        assert not ctx.model.unimodal_heads

    def test_head_of_weight_zero_stays_as_initialised(self) -> None:
        method, ctx = prepare(weights={"a": 0.2, "fused": 0.8})
        before = copy.deepcopy(ctx.model.unimodal_heads)
        for batch in method.batches(ctx):
            method.step(batch, ctx)
        assert not same_parameters(before["a"], ctx.model.unimodal_heads["a"])
        assert same_parameters(before["b"], ctx.model.unimodal_heads["b"])

    def test_interrupted_run_ends_like_an_undisturbed_one(self, tmp_path: Path) -> None:
        def run(**settings: Any) -> Fit:
            return train(GBlending(GBlending.Options(super_epoch=0.4), task()), **settings)

        resumes(run, tmp_path / "run.ckpt", 3)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"super_epoch": 0.4},
            {"form": "offline"},
            {"heads": "slices", "held_out": 0.3},
            {"weights": {"fused": 1}},
        ],
    )
    def test_counted_passes_equal_the_expected_ones(self, options: dict[str, Any]) -> None:
        method = GBlending(GBlending.Options(**options), task())
        expected = method.expected_passes(Plan(EPOCHS, 57, 9, ("a", "b"), 16))
        counted = train(method).passes
        assert (counted.forward, counted.backward) == pytest.approx((expected.forward, expected.backward))

    @pytest.mark.parametrize("form", ["online", "offline"])
    def test_hundred_epochs_cost_about_three_times_joint_training(self, form: str) -> None:
        method = GBlending(GBlending.Options(form=form), task())
        passes = method.expected_passes(Plan(100, 6698, 744, ("a", "b"), 64))
        assert passes.relative == pytest.approx(3, rel=0.1)
        assert method.info.passes.relative == pytest.approx(passes.relative, rel=0.05)


class TestOptions:
    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ({"a": 1.0, "b": 1.0, "fused": 1.0}, "sum to 1, found 3"),
            ({}, "sum to 1, found 0"),
            ({"a": -0.5, "fused": 1.5}, "greater than or equal to 0"),
            ({"a": float("nan")}, "finite number"),
        ],
    )
    def test_wrong_weights_are_refused(self, weights: dict[str, float], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            GBlending.Options(weights=weights)

    def test_published_weights_rounded_to_three_digits_are_taken(self) -> None:
        options = GBlending.Options(weights={"a": 0.175, "b": 0.460, "fused": 0.364})
        assert GBlending(options, task()).weights == {"a": 0.175, "b": 0.460, "fused": 0.364}

    def test_weight_for_an_unknown_branch_is_refused_with_the_branches(self) -> None:
        options = GBlending.Options(weights={"audio": 0.5, "fused": 0.5})
        assert GBlending.refuses(options, task()) == "has no branch audio to weight; use a, b, fused"

    def test_modality_named_like_the_fused_branch_is_refused(self) -> None:
        assert "rename the modality" in str(GBlending.refuses(GBlending.Options(), task("a", "fused")))
