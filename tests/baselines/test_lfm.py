"""LFM: the worked numbers, the three weightings, and the late-fusion model."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from baselines.lfm import (
    LFM,
    contrastive,
    fitted_weight,
    heuristic_weight,
    hypergradient,
    mixture_divergence,
    pairwise,
)
from benchmark.context import Context, Run
from benchmark.fusion import FiLM
from benchmark.gradients import min_norm_weight
from benchmark.method import Method, Passes, Plan
from benchmark.model import MultimodalModel, same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import fit, initialised
from tests.baselines.scenes import NormedEncoder, random_part, resumes


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LABELS = torch.tensor([0, 1])
AUDIO = _double([[2.0, 0.5, -1.0], [0.2, 1.5, 0.3]])
VIDEO = _double([[0.5, 0.4, 0.1], [0.3, 0.6, 0.2]])


def close(found: Tensor | float, expected: object) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64).detach(), _double(expected), rtol=0, atol=5.1e-7
    )


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    p, q = a.softmax(1), b.softmax(1)
    mixture = (p + q) / 2
    return ((p * (p / mixture).log()).sum(1) + (q * (q / mixture).log()).sum(1)).mean() / 2


class TestWorkedNumbers:
    classification = functional.cross_entropy((AUDIO + VIDEO) / 2, LABELS)

    def test_classification_and_alignment(self) -> None:
        close(self.classification, 0.565481)
        close(mixture_divergence(AUDIO, VIDEO), 0.068015)

    def test_the_alignment_is_not_the_jensen_shannon_divergence(self) -> None:
        close(jensen_shannon(AUDIO, VIDEO), 0.060107)
        assert float(mixture_divergence(AUDIO, VIDEO)) != pytest.approx(0.060107, abs=5e-3)

    @pytest.mark.parametrize(("epoch", "loss"), [(0, 0.339617), (100, 0.672453)])
    def test_loss_at_an_epoch_of_two_hundred(self, epoch: int, loss: float) -> None:
        found, method = _losses(epoch, 200, {"a": AUDIO, "v": VIDEO}, LABELS)
        assert method.alignment_weight == pytest.approx(1 - fitted_weight(epoch))
        close(found["classification"] + found["alignment"], loss)

    @pytest.mark.parametrize(
        ("epoch", "weight"),
        [
            (0, 0.204624),
            (1, 0.208099),
            (10, 0.247759),
            (20, 0.300887),
            (50, 0.436681),
            (70, 0.484012),
            (100, 0.539155),
            (120, 0.614572),
            (150, 0.821314),
            (180, 1.007668),
            (199, 0.915989),
        ],
    )
    def test_fitted_weight(self, epoch: int, weight: float) -> None:
        close(fitted_weight(epoch), weight)

    def test_the_fit_passes_a_half_at_80_and_exceeds_one_around_183(self) -> None:
        weights = [fitted_weight(epoch) for epoch in range(200)]
        assert [weight > 0.5 for weight in weights] == [epoch >= 80 for epoch in range(200)]
        assert [epoch for epoch, weight in enumerate(weights) if weight > 1] == list(range(177, 189))
        assert weights.index(max(weights)) == 183
        close(max(weights), 1.010540)

    @pytest.mark.parametrize(
        ("epoch", "weight"), [(0, 0.95), (1, 0.740818), (2, 0.548812), (5, 0.223130), (9, 0.067206), (10, 0.05)]
    )
    def test_heuristic_weight(self, epoch: int, weight: float) -> None:
        close(heuristic_weight(0.3 * epoch), weight)

    @pytest.mark.parametrize(("inner", "weight"), [(-0.2, 0.777778), (0.5, 0.875), (1.5, 0.999)])
    def test_two_task_min_norm_weight_of_a_removed_script(self, inner: float, weight: float) -> None:
        """The suite's solver agrees, but for the script's cap of 0.999."""
        u, v = _double([1, 0]), _double([inner, (4 - inner**2) ** 0.5])
        close(min(min_norm_weight(u, v), 0.999), weight)

    @pytest.mark.parametrize(("temperature", "loss"), [(1, 0.998700), (0.07, 2.809544)])
    def test_contrastive_loss(self, temperature: float, loss: float) -> None:
        a, b = _double([[1, 0], [0, 2], [1, 1]]), _double([[0.5, 0.5], [0, 1], [2, 0]])
        close(contrastive(a, b, temperature), loss)
        close(contrastive(b, a, temperature), loss)


class TestAlignment:
    def test_it_is_symmetric(self) -> None:
        torch.testing.assert_close(mixture_divergence(VIDEO, AUDIO), mixture_divergence(AUDIO, VIDEO))

    def test_it_is_zero_for_equal_predictions_alone(self) -> None:
        assert abs(float(mixture_divergence(AUDIO, AUDIO + 3))) < 1e-15
        assert float(mixture_divergence(AUDIO, 1.01 * AUDIO)) > 1e-7

    def test_certain_predictions_have_a_finite_value_and_gradient(self) -> None:
        logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
        loss = mixture_divergence(logits, -logits.detach())
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()

    def test_three_modalities_average_their_pairs(self) -> None:
        third = AUDIO.flip(1)
        pairs = [(AUDIO, VIDEO), (AUDIO, third), (VIDEO, third)]
        expected = torch.stack([mixture_divergence(*pair) for pair in pairs]).mean()
        torch.testing.assert_close(pairwise([AUDIO, VIDEO, third], mixture_divergence), expected)

    def test_contrastive_of_one_sample_is_zero(self) -> None:
        assert contrastive(AUDIO[:1], VIDEO[:1]) == 0


def test_hypergradient_is_the_slope_of_the_held_out_loss_after_one_step() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    centres = torch.randn(3, 5, generator=generator, dtype=torch.float64)

    def gradient(position: Tensor, which: int) -> Tensor:
        return 4 * (position - centres[which]) ** 3

    def stepped(weight: float) -> Tensor:
        return start - 0.02 * ((1 - weight) * gradient(start, 0) + weight * gradient(start, 1))

    def held_out(weight: float) -> float:
        return float(((stepped(weight) - centres[2]) ** 4).sum())

    found = hypergradient([gradient(stepped(0.6), 2)], [gradient(start, 0)], [gradient(start, 1)], lr=0.01)
    assert float(found) == pytest.approx((held_out(0.6 + 1e-5) - held_out(0.6 - 1e-5)) / 2e-5, rel=1e-6)


SIZES = {"a": 4, "v": 3, "t": 5}
EPOCHS = 5
PROTOCOL = Protocol(epochs=EPOCHS, batch_size=8, optimizer=Optimizer(lr=0.05))


PARTS = {"train": random_part(SIZES, 60, 0), "val": random_part(SIZES, 12, 1), "test": random_part(SIZES, 12, 2)}


def _task(modalities: str = "av", equal: bool = True, fusion: Any = FiLM) -> Task:
    def backbone(name: str, shape: tuple[int, ...]) -> nn.Module:
        return NormedEncoder(shape, 6 if equal else 2 * SIZES[name])

    return Task({name: (SIZES[name],) for name in modalities}, 3, EPOCHS, backbone, fusion)


def _method(modalities: str = "av", **options: Any) -> LFM:
    return LFM(LFM.Options(**options), _task(modalities))


def _context(method: Method, epochs: int = EPOCHS) -> Context:
    model = initialised(method, 0).train()
    plan = Plan(epochs, 60, 12, method.task.modalities, 8)
    run = Run(method.task, plan, PARTS["train"], PARTS["val"], 0, PROTOCOL)
    return Context(run, model, method.parameters(model))


def _losses(
    epoch: int, epochs: int, logits: dict[str, Tensor], labels: Tensor, **options: Any
) -> tuple[dict[str, Tensor], LFM]:
    """Return the losses in an epoch, of a model whose heads pass the features on as logits."""
    method = _method("".join(logits), **options)
    ctx = _context(method, epochs)
    ctx.start(epoch)
    method.start_epoch(ctx)
    forward = ctx.forward(next(ctx.batches()))
    forward.features = {name: values.clone().requires_grad_() for name, values in logits.items()}
    forward.model.unimodal_heads = nn.ModuleDict({name: nn.Identity() for name in logits})
    return method.losses(forward, _Labels(labels), ctx), method  # type: ignore[arg-type]


class _Labels:
    def __init__(self, labels: Tensor) -> None:
        self.labels = labels


class TestWeights:
    def weights(self, epochs: int, **options: Any) -> list[float]:
        method, found = _method(**options), []
        ctx = _context(method, epochs)
        for epoch in range(epochs):
            ctx.start(epoch)
            method.start_epoch(ctx)
            found.append(method.alignment_weight)
        return found

    def test_a_shorter_run_has_the_fitted_weights_of_the_same_fraction_never_below_zero(self) -> None:
        found = self.weights(20)
        assert found == pytest.approx([max(1 - fitted_weight(10 * epoch), 0) for epoch in range(20)])
        assert found[18] == 0

    def test_heuristic_weights_of_twenty_epochs_are_the_official_ones(self) -> None:
        found = self.weights(20, weighting="heuristic")
        assert found == pytest.approx([heuristic_weight(0.3 * epoch) for epoch in range(20)])

    def test_heuristic_losses_have_no_factor_two(self) -> None:
        found, method = _losses(1, 20, {"a": AUDIO, "v": VIDEO}, LABELS, weighting="heuristic")
        weight = heuristic_weight(0.3)
        assert method.alignment_weight == pytest.approx(weight)
        close(found["alignment"], (weight * mixture_divergence(AUDIO, VIDEO)).tolist())

    def test_all_weight_on_the_labels_is_twice_the_late_fusion_loss(self) -> None:
        found, method = _losses(180, 200, {"a": AUDIO, "v": VIDEO}, LABELS)
        assert method.alignment_weight == 0
        assert found["alignment"] == 0
        close(found["classification"], 2 * TestWorkedNumbers.classification.item())

    def test_learned_weights_start_at_the_alignment_stay_in_bounds_and_stop_moving(self) -> None:
        found = self.weights(20, weighting="learned", rate=30.0)
        assert len(set(found[:4])) == 4
        assert all(0.05 <= weight <= 0.95 for weight in found)
        first, last = (abs(a - b) for a, b in (found[:2], found[-2:]))
        assert last <= first

    def test_learned_weight_descends_the_held_out_loss_after_one_step(self) -> None:
        method = _method(weighting="learned", rate=0.01)
        train = replace(PARTS["train"], inputs={k: v.double() for k, v in PARTS["train"].inputs.items()})
        ctx, same = _context(method), _context(method)
        for context in (ctx, same):
            context.run.train = train
            context.model.double()
            context.set_lr(0.5)
        method.alignment_weight = 0.5
        method.start_epoch(ctx)
        held_out = torch.randperm(60, generator=same.generator)[:16].sort().values
        held_in = torch.tensor([sample for sample in range(60) if sample not in held_out])
        chosen = held_in[torch.randperm(44, generator=same.generator)[:8]]
        model = same.model.eval()

        def terms(model: nn.Module, positions: Tensor) -> tuple[Tensor, Tensor]:
            assert isinstance(model, MultimodalModel)
            votes = model.unimodal_logits(model.encode({k: v[positions] for k, v in train.inputs.items()}))
            a, b = votes.values()
            return functional.cross_entropy((a + b) / 2, train.labels[positions]), mixture_divergence(a, b)

        def after(weight: float) -> float:
            stepped = copy.deepcopy(model)
            classification, alignment = terms(stepped, chosen)
            (2 * (1 - weight) * classification + 2 * weight * alignment).backward()
            torch.optim.SGD(stepped.parameters(), lr=0.5).step()
            return terms(stepped, held_out)[0].item()

        slope = (after(0.5 + 1e-4) - after(0.5 - 1e-4)) / 2e-4
        assert torch.equal(method.held_out, held_out)
        assert abs(slope) > 0.01
        assert method.alignment_weight == pytest.approx(0.5 - 0.01 * slope, abs=1e-8)

    def test_learning_a_weight_leaves_the_model_and_the_order_of_training(self) -> None:
        learned = _method(weighting="learned")
        ctx, untouched = _context(learned), _context(learned)
        learned.start_epoch(ctx)
        assert same_parameters(ctx.model, untouched.model)
        assert ctx.model.training
        held_in = torch.arange(60)[~torch.isin(torch.arange(60), learned.held_out)]
        own, plain = learned.batches(ctx), untouched.batches(indices=held_in)
        assert all(torch.equal(a.index, b.index) for a, b in zip(own, plain, strict=True))

    def test_sixteen_samples_that_weights_are_learned_on_are_never_trained_on(self) -> None:
        method = _method(weighting="learned")
        ctx = _context(method)
        method.start_epoch(ctx)
        held_out = set(method.held_out.tolist())
        trained = {int(index) for batch in method.batches(ctx) for index in batch.index}
        assert len(held_out) == 16
        assert trained == set(range(60)) - held_out


class TestModel:
    def test_own_heads_are_averaged_and_nothing_else_is_trained(self) -> None:
        model = initialised(_method("avt"), 0).eval()
        features = model.encode(PARTS["val"].inputs)
        votes = model.unimodal_logits(features)
        torch.testing.assert_close(model.classify(features), (votes["a"] + votes["v"] + votes["t"]) / 3)
        torch.testing.assert_close(model.classify({"v": features["v"]}), votes["v"])
        assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"encoders", "unimodal_heads"}

    def test_slices_keep_the_fusion_and_the_head_of_joint_training(self) -> None:
        method = _method(heads="slices")
        joint = Method(Method.Options(), method.task)
        assert same_parameters(initialised(method, 0), initialised(joint, 0))
        ctx = _context(method)
        method.start_epoch(ctx)
        batch = next(ctx.batches())
        forward = ctx.forward(batch)
        losses, weight = method.losses(forward, batch, ctx), method.alignment_weight
        fused = functional.cross_entropy(forward.logits, batch.labels)
        torch.testing.assert_close(losses["classification"], 2 * (1 - weight) * fused)
        aligned = mixture_divergence(*forward.unimodal.values())
        torch.testing.assert_close(losses["alignment"], 2 * weight * aligned)

    def test_contrastive_alignment_compares_the_features(self) -> None:
        method = _method(alignment="contrastive", temperature=0.5)
        ctx = _context(method)
        method.start_epoch(ctx)
        batch = next(ctx.batches())
        forward = ctx.forward(batch)
        expected = (
            2 * method.alignment_weight * contrastive(forward.features["a"], forward.features["v"], temperature=0.5)
        )
        torch.testing.assert_close(method.losses(forward, batch, ctx)["alignment"], expected)


@pytest.mark.parametrize(
    "options", [{}, {"weighting": "heuristic"}, {"weighting": "learned"}, {"alignment": "contrastive"}]
)
def test_counted_passes_are_those_expected(options: dict[str, Any]) -> None:
    method = _method("avt", **options)
    expected = method.expected_passes(Plan(EPOCHS, 60, 12, ("a", "v", "t"), 8))
    counted = fit(method, PARTS, PROTOCOL, 0).passes
    assert (counted.forward, counted.backward) == pytest.approx((expected.forward, expected.backward))
    assert (expected == Passes()) == (options.get("weighting") != "learned")


@pytest.mark.parametrize("options", [{"heads": "slices"}, {"weighting": "learned"}])
def test_an_interrupted_run_ends_with_the_same_metrics(options: dict[str, Any], tmp_path: Path) -> None:
    resumes(lambda **settings: fit(_method(**options), PARTS, PROTOCOL, 0, **settings), tmp_path / "run.ckpt", 2)


def test_contrastive_alignment_refuses_unequal_widths() -> None:
    task, options = _task(equal=False), LFM.Options(alignment="contrastive")
    assert "use alignment=divergence" in str(LFM.refuses(options, task))
    assert LFM.refuses(options, _task()) is None
    assert LFM.refuses(LFM.Options(), task) is None


@pytest.mark.parametrize("options", [{"decay": 0}, {"rate": 0}, {"temperature": 0}, {"weighting": "min_norm"}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LFM.Options(**options)
