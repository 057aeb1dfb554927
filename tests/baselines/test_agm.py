"""AGM: the worked numbers, the routing against a plain autograd implementation, window, history and clipping."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

import baselines.agm
from baselines.agm import (
    AGM,
    clip_,
    coalitions,
    coefficients,
    responses,
    routing,
    scores,
    strengths,
    updated_history,
)
from baselines.joint import Joint
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.diagnostics import Diagnostics, PassCounter
from benchmark.fusion import Concat, FiLM, Fusion, Sum
from benchmark.method import Method, Passes, Plan
from benchmark.model import MultimodalModel, same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import Fit, fit
from tests.baselines.scenes import context, resumes

LABELS = torch.tensor([0, 1])
FUSED = torch.tensor([[2.0, 0.5, -1.0], [0.2, 1.5, 0.3]], dtype=torch.float64)
AUDIO = torch.tensor([[1.6, 0.3, -0.7], [0.1, 0.9, 0.4]], dtype=torch.float64)
VIDEO = torch.tensor([[0.4, 0.2, -0.1], [0.2, 0.5, 0.1]], dtype=torch.float64)
MUTED = {frozenset("a"): AUDIO, frozenset("v"): VIDEO}


def close(found: Tensor | float, expected: object, digits: int = 6) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(found).double(), expected, rtol=0, atol=0.51 * 10**-digits)


class TestWorkedNumbers:
    def score(self) -> Tensor:
        return scores(responses("av", FUSED, MUTED), LABELS)

    def test_responses_and_their_sum(self) -> None:
        split = responses("av", FUSED, MUTED)
        close(split["a"], [[1.6, 0.3, -0.8], [0.05, 0.95, 0.3]], 12)
        close(split["v"], [[0.4, 0.2, -0.2], [0.15, 0.55, 0]], 12)
        close(split["a"] + split["v"], FUSED, 12)
        close(functional.cross_entropy(FUSED, LABELS), 0.347379)

    def test_scores_and_strengths(self) -> None:
        close(self.score(), [0.483337, 0.835784])
        close(strengths(self.score()), [1.422545, 0.702966])

    def test_first_step(self) -> None:
        history = torch.zeros(2, dtype=torch.float64)
        close(strengths(history), [1, 1])
        close(coefficients(self.score(), history, alpha=1.5), [0.530563, 1.561351])
        close(updated_history(history, self.score(), 1), [0.483337, 0.835784])

    @pytest.mark.parametrize(("alpha", "expected"), [(1.5, [0.896704, 1.058422]), (0.5, [0.964309, 1.019107])])
    def test_eleventh_step(self, alpha: float, expected: list[float]) -> None:
        history = torch.tensor([1.2, 1.5], dtype=torch.float64)
        close(strengths(history), [1.349859, 0.740818])
        close(coefficients(self.score(), history, alpha=alpha), expected)
        close(updated_history(history, self.score(), 11), [1.134849, 1.439617])

    def test_response_of_three_modalities(self) -> None:
        generator = torch.Generator().manual_seed(0)
        v = {c: torch.randn(4, 3, generator=generator, dtype=torch.float64) for c in coalitions("avt")}
        fused = torch.randn(4, 3, generator=generator, dtype=torch.float64)

        def of(members: str) -> Tensor:
            return v[frozenset(members)]

        text = (fused - of("av") + of("t")) / 3 + (of("at") - of("a") + of("vt") - of("v")) / 6
        split = responses("avt", fused, v)
        torch.testing.assert_close(split["t"], text)
        torch.testing.assert_close(split["a"] + split["v"] + split["t"], fused)


class TestInvariants:
    def test_the_modality_that_is_better_than_its_past_is_slowed_and_the_other_boosted(self) -> None:
        kappa = coefficients(torch.tensor([0.2, 1.0]), torch.tensor([0.5, 0.5]))
        assert kappa[0] < 1 < kappa[1]

    def test_three_modalities_are_compared_with_their_mean(self) -> None:
        close(strengths(torch.tensor([0.3, 0.9, 1.2])), torch.tensor([0.75, -0.15, -0.6]).exp().double())

    @pytest.mark.parametrize("alpha", [0.1, 1.0, 4.0])
    def test_no_change_against_the_history_gives_no_modulation(self, alpha: float) -> None:
        score = torch.tensor([0.3, 1.7, 0.9])
        close(coefficients(score, score, alpha=alpha), [1, 1, 1], 12)

    def test_cap_bounds_the_coefficient_from_above(self) -> None:
        history = torch.tensor([0.0, 5.0])
        assert float(coefficients(history.flip(0), history, alpha=0.5, cap=7.0)[0]) == pytest.approx(math.exp(3.5))

    def test_hopeless_probability_counts_as_1e_8(self) -> None:
        close(scores({"a": torch.tensor([[100.0, 0.0]])}, torch.tensor([1])), [8 * math.log(10)])

    def test_history_is_the_plain_mean(self) -> None:
        history, values = torch.zeros(2), torch.rand(7, 2)
        for step, value in enumerate(values, 1):
            history = updated_history(history, value, step)
        torch.testing.assert_close(history, values.mean(0))

    def test_two_modalities_route_half_the_sum_and_half_the_difference(self) -> None:
        fused, shares = routing("av", torch.tensor([0.4, 1.7]))
        close(fused, 1.05)
        close(shares[frozenset("a")], -0.65)
        close(shares[frozenset("v")], 0.65)

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_routing_is_the_gradient_of_scaled_responses(self, count: int) -> None:
        names, generator = "avtz"[:count], torch.Generator().manual_seed(count)
        leaves = {c: torch.randn(2, 3, generator=generator).requires_grad_() for c in coalitions(names)}
        fused = torch.randn(2, 3, generator=generator).requires_grad_()
        assert len(leaves) == 2**count - 2
        kappa = torch.rand(count, generator=generator)
        split = responses(names, fused, leaves)
        sum((k * m).sum() for k, m in zip(kappa, split.values(), strict=True)).backward()
        mean, shares = routing(names, kappa)
        for leaf, share in ((fused, mean), *((leaves[c], shares[c]) for c in leaves)):
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad, share.expand(2, 3))

    @pytest.mark.parametrize("count", [2, 3, 4, 5])
    def test_equal_coefficients_send_exactly_nothing_through_coalitions(self, count: int) -> None:
        mean, shares = routing("avtzx"[:count], torch.ones(count, dtype=torch.float64))
        assert float(mean) == 1
        assert all(float(share) == 0 for share in shares.values())


class TestClip:
    def gradients(self, limit: float) -> tuple[Tensor, Tensor]:
        head, other = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        head.grad, other.grad = torch.tensor([-3.0, 0.0]), torch.tensor([0.0, 4.0])
        clip_([head, other, nn.Parameter(torch.zeros(1))], head, limit)
        return head.grad, other.grad

    def test_norm_is_clipped_to_the_limit_that_an_entry_of_the_head_exceeds(self) -> None:
        close(self.gradients(2.0)[0], [-1.2, 0])
        close(self.gradients(2.0)[1], [0, 1.6])

    def test_nothing_changes_while_the_head_stays_below(self) -> None:
        assert torch.equal(self.gradients(3.5)[0], torch.tensor([-3.0, 0.0]))
        assert torch.equal(self.gradients(3.5)[1], torch.tensor([0.0, 4.0]))


class Encoder(nn.Module):
    def __init__(self, shape: tuple[int, ...], width: int, norm: bool) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(shape[0], 5)
        self.norm = nn.BatchNorm1d(5) if norm else nn.Identity()
        self.second = nn.Linear(5, width)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.second(self.norm(self.first(inputs)).tanh())
        return features


WIDTHS = {"a": 4, "v": 6, "t": 5}


def task(modalities: str = "av", fusion: type[Fusion] = Concat, norm: bool = True, epochs: int = 4) -> Task:
    return Task(
        dict.fromkeys(modalities, (3,)), 3, epochs, lambda name, shape: Encoder(shape, WIDTHS[name], norm), fusion
    )


def part(modalities: str, size: int, dtype: torch.dtype = torch.float64) -> Part:
    generator = torch.Generator().manual_seed(size)
    inputs = {m: torch.randn(size, 3, generator=generator, dtype=dtype) for m in modalities}
    return Part.from_tensors(inputs, torch.arange(size) % 3)


def prepare(of: Task, **options: Any) -> tuple[AGM, Context, Batch]:
    """Return a method, a float64 context of plain gradient descent with learning rate 1, and a batch."""
    method = AGM(AGM.Options(**options), of)
    torch.manual_seed(0)
    model = method.build().double()
    data = part("".join(of.modalities), 6)
    diagnostics = Diagnostics(of.modalities, torch.device("cpu"))
    ctx = context(method, model, data, 6, diagnostics=diagnostics)
    return method, ctx, next(data.batches(6))


def descent(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Return what a step has subtracted from every parameter."""
    new = dict(after.named_parameters())
    return {name: (p - new[name]).detach() for name, p in before.named_parameters()}


def plain(model: MultimodalModel, batch: Batch, kappa: Tensor | None, alpha: float) -> dict[str, Tensor]:
    """Return all gradients of AGM's first step as the official code gets them: a forward pass per coalition."""
    names = model.modalities
    fused = model.classify(model.encode(batch.inputs))
    model.eval()
    muted = {
        c: model.classify(model.encode({m: x if m in c else torch.zeros_like(x) for m, x in batch.inputs.items()}))
        for c in coalitions(names)
    }
    model.train()
    split = responses(names, fused, muted)
    if kappa is None:
        kappa = coefficients(scores(split, batch.labels), torch.zeros(len(names)), alpha=alpha).detach()
    for response, factor in zip(split.values(), kappa, strict=True):
        response.register_hook(lambda gradient, factor=factor: factor * gradient)
    loss = functional.cross_entropy(torch.stack(list(split.values())).sum(0), batch.labels)
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


class TestStep:
    @pytest.mark.parametrize("fusion", [Concat, Sum, FiLM])
    @pytest.mark.parametrize("modalities", ["av", "avt"])
    def test_step_equals_one_forward_pass_per_coalition_with_hooks_on_responses(
        self, modalities: str, fusion: type[Fusion]
    ) -> None:
        method, ctx, batch = prepare(task(modalities, fusion), alpha=1.5, clip=None)
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        expected = plain(copy.deepcopy(before), batch, None, 1.5)
        joint = plain(copy.deepcopy(before), batch, torch.ones(len(modalities)), 1.5)
        for name, gradient in descent(before, ctx.model).items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12, msg=name)
        assert any(not torch.allclose(expected[name], joint[name], rtol=1e-3) for name in joint)

    def test_coefficients_04_and_17_reach_the_encoders_first_weights_and_105_the_bias(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kappa = torch.tensor([0.4, 1.7], dtype=torch.float64)
        monkeypatch.setattr(baselines.agm, "coefficients", lambda *_, **__: kappa)
        method, ctx, batch = prepare(task(norm=False), clip=None)
        before = copy.deepcopy(ctx.model)
        method.step(batch, ctx)
        found = descent(before, ctx.model)
        features = before.encode(batch.inputs)
        loss = functional.cross_entropy(before.classify(features), batch.labels)
        assert float(ctx.loss_sum) == pytest.approx(loss.item())
        names = [name for name, _ in before.named_parameters()]
        joint = dict(zip(names, torch.autograd.grad(loss, list(before.parameters()), retain_graph=True), strict=True))
        feature = dict(zip("av", torch.autograd.grad(loss, [features[m] for m in "av"]), strict=True))
        for m, own, other in (("a", 0.4, 1.7), ("v", 1.7, 0.4)):
            weight, bias = f"encoders.{m}.first.weight", f"encoders.{m}.first.bias"
            torch.testing.assert_close(found[weight], own * joint[weight], rtol=0, atol=1e-12)
            muted = before.encode({m: torch.zeros_like(batch.inputs[m])}, only=[m])[m]
            (zero,) = torch.autograd.grad(muted, dict(before.named_parameters())[bias], feature[m])
            torch.testing.assert_close(found[bias], own * joint[bias] + (other - own) / 2 * zero, rtol=0, atol=1e-12)
        torch.testing.assert_close(found["head.bias"], 1.05 * joint["head.bias"], rtol=0, atol=1e-12)

    def test_clipping_bounds_the_whole_gradient(self) -> None:
        found = {}
        for clip in (None, 1e-3):
            method, ctx, batch = prepare(task(), clip=clip)
            before = copy.deepcopy(ctx.model)
            method.step(batch, ctx)
            found[clip] = torch.cat([value.flatten() for value in descent(before, ctx.model).values()])
        assert float(found[1e-3].norm()) == pytest.approx(1e-3, rel=1e-2)
        torch.testing.assert_close(found[1e-3], found[None] * (found[1e-3].norm() / found[None].norm()))

    def test_extra_passes_leave_batch_statistics_and_training_mode_alone(self) -> None:
        method, ctx, batch = prepare(task())
        joint = copy.deepcopy(ctx.model)
        joint.encode(batch.inputs)
        method.step(batch, ctx)
        for (name, own), expected in zip(ctx.model.named_buffers(), joint.buffers(), strict=True):
            assert torch.equal(own, expected), name
        assert all(module.training for module in ctx.model.modules())

    def test_diagnostics_see_the_gradients_of_joint_training_once(self) -> None:
        method, ctx, batch = prepare(task())
        other, joint, _ = prepare(task())
        method.step(batch, ctx)
        Method.step(other, batch, joint)
        assert ctx._diagnostics is not None
        assert joint._diagnostics is not None
        assert ctx._diagnostics.state_dict() == joint._diagnostics.state_dict()

    def test_coefficients_are_noted(self) -> None:
        method, ctx, batch = prepare(task(), alpha=1.5)
        method.step(batch, ctx)
        notes = ctx.notes()
        assert set(notes) == {"coefficient of a", "coefficient of v"}
        assert (notes["coefficient of a"] - 1) * (notes["coefficient of v"] - 1) < 0

    def test_after_the_window_a_step_is_that_of_joint_training(self) -> None:
        method, ctx, batch = prepare(task(), window=0.5)
        for epoch, modulated in enumerate((True, True, False, False)):
            ctx.start(epoch)
            other = copy.deepcopy(ctx.model)
            counter = PassCounter(("a", "v"))
            counter.watch(ctx.model.encoders)
            method.step(batch, ctx)
            assert counter.passes(6, 1).relative == pytest.approx(13 / 6 if modulated else 1)
            assert method.steps == min(epoch + 1, 2)
            loss = functional.cross_entropy(other.classify(other.encode(batch.inputs)), batch.labels)
            joint = torch.autograd.grad(loss, list(other.parameters()))
            found = descent(other, ctx.model).values()
            same = all(torch.allclose(x, y, atol=1e-12) for x, y in zip(found, joint, strict=True))
            assert same is not modulated


EPOCHS = 4


def train(method: Method, **arguments: Any) -> Fit:
    names = "".join(method.task.modalities)
    parts = {name: part(names, size, torch.float32) for name, size in (("train", 21), ("val", 9), ("test", 9))}
    return fit(method, parts, Protocol(epochs=EPOCHS, batch_size=8, optimizer=Optimizer(lr=0.05)), 0, **arguments)


class TestRun:
    @pytest.mark.parametrize("modalities", ["av", "avt"])
    @pytest.mark.parametrize("options", [AGM.noop, {"window": 0.0}])
    def test_without_strength_or_window_it_is_joint_training_bit_for_bit(
        self, options: dict[str, Any], modalities: str
    ) -> None:
        agm = train(AGM(AGM.Options(**options), task(modalities)))
        joint = train(Joint(Joint.Options(), task(modalities)))
        assert same_parameters(agm.model, joint.model)

    @pytest.mark.parametrize(("modalities", "window"), [("av", 1.0), ("avt", 1.0), ("av", 0.5)])
    def test_counted_passes_equal_the_expected_ones(self, modalities: str, window: float) -> None:
        method = AGM(AGM.Options(window=window), task(modalities))
        expected = method.expected_passes(Plan(EPOCHS, 21, 9, tuple(modalities), 8))
        counted = train(method).passes
        assert (counted.forward, counted.backward) == pytest.approx((expected.forward, expected.backward))

    def test_hundred_epochs_cost_about_twice_joint_training(self) -> None:
        method = AGM(AGM.Options(), task())
        passes = method.expected_passes(Plan(100, 6698, 744, ("a", "v"), 64))
        assert passes.relative == pytest.approx(2, rel=0.01)
        assert method.info.passes.relative == pytest.approx(passes.relative, rel=0.001)
        half = AGM(AGM.Options(window=0.5), task()).expected_passes(Plan(100, 6400, 744, ("a", "v"), 64))
        assert half == Passes(1.5078125, 1.5078125)

    def test_interrupted_run_keeps_its_history(self, tmp_path: Path) -> None:
        methods: list[AGM] = []

        def run(**settings: Any) -> Fit:
            methods.append(AGM(AGM.Options(), task()))
            return train(methods[-1], **settings)

        resumes(run, tmp_path / "run.ckpt", 1)
        undisturbed, _, resumed = methods
        assert torch.equal(resumed.history, undisturbed.history)
        assert resumed.steps == undisturbed.steps == 3 * EPOCHS


class TestOptions:
    @pytest.mark.parametrize("options", [{"alpha": -1}, {"cap": -1}, {"window": 1.5}, {"clip": 0}, {"inverted": True}])
    def test_bad_options_are_refused_before_anything_runs(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            AGM.Options(**options)

    def test_single_modality_is_refused(self) -> None:
        assert "at least 2 modalities" in str(AGM.refuses(AGM.Options(), task("a")))
