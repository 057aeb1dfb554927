"""InfoReg: the worked strengths and windows, the pull, and what a run with it is made of."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from baselines.inforeg import InfoReg, growth_rate, in_window, pull_, pull_strengths, squared_gradient
from baselines.joint import Joint
from benchmark.context import Context
from benchmark.data import Batch, Part
from benchmark.fusion import Fusion, Sum
from benchmark.method import Method, summed_confidences, total, unimodal_losses
from benchmark.model import same_parameters
from benchmark.protocol import Optimizer
from benchmark.task import Task
from benchmark.training import initialised
from tests.baselines.scenes import context

OFFICIAL = torch.tensor([0.95, 0.1], dtype=torch.float64)
FALLING = [5.0, 4.2, 3.6, 3.1, 2.7, 2.4, 2.1, 1.9, 1.7, 1.5, 1.4]
RISING = [0.5, 1, 2, 3, 3.5, 3.8, 4, 4.1, 4.15, 4.18, 4.2, 4.2, 4.2, 4.2]


def strengths(*found: float) -> list[float]:
    """Return beta of audio and video at the official strengths."""
    return pull_strengths(torch.tensor(found, dtype=torch.float64), OFFICIAL).tolist()


class TestStrengths:
    @pytest.mark.parametrize(
        ("audio", "video", "expected"),
        [(40, 38, 2.491125), (40, 39.5, 1.508060), (0.62, 0.60, 0.969189)],
    )
    def test_worked_leads_of_audio(self, audio: float, video: float, expected: float) -> None:
        assert strengths(audio, video) == pytest.approx([expected, 0], abs=5e-7)

    def test_worked_lead_of_video_gives_0271804_and_leaves_audio_alone(self) -> None:
        assert strengths(20, 25) == pytest.approx([0, 0.271804], abs=5e-7)

    def test_mean_scores_would_give_0980146_at_batch_64(self) -> None:
        assert strengths(40 / 64, 38 / 64) == pytest.approx([0.980146, 0], abs=5e-7)
        assert strengths(40, 38)[0] > 2 * 0.980146

    def test_a_tie_has_no_leader(self) -> None:
        assert strengths(30, 30) == [0, 0]
        assert pull_strengths(torch.tensor([3.0, 3.0, 1.0]), torch.ones(3)).tolist() == [0, 0, 0]

    def test_of_three_the_leader_is_compared_with_the_mean_of_the_others(self) -> None:
        found = pull_strengths(torch.tensor([1.0, 2.5, 2.0]), torch.tensor([1.0, 0.5, 1.0]))
        assert found.tolist() == pytest.approx([0, 0.5 * math.exp(math.tanh(1.0)), 0])

    @given(st.lists(st.floats(0, 64), min_size=2, max_size=4, unique=True))
    def test_exactly_one_modality_is_held_back_with_between_1_and_e_times_its_strength(
        self, found: list[float]
    ) -> None:
        betas = pull_strengths(torch.tensor(found, dtype=torch.float64), torch.full((len(found),), 0.95)).tolist()
        leader = max(range(len(found)), key=found.__getitem__)
        assert [k for k, beta in enumerate(betas) if beta > 0] == [leader]
        assert 0.95 - 1e-6 <= betas[leader] <= 0.95 * math.e + 1e-6

    def test_scores_are_sums_of_true_class_probabilities(self) -> None:
        logits = {"a": torch.tensor([[2.0, 0.0], [0.0, 0.0]]), "v": torch.zeros(2, 2)}
        found = summed_confidences(logits, torch.tensor([0, 1]))
        assert found.tolist() == pytest.approx([1 / (1 + math.exp(-2)) + 0.5, 1.0])


class TestWindow:
    def test_worked_falling_traces(self) -> None:
        expected = [1, 0.456522, 0.281250, 0.194969, 0.145161, 0.114286, 0.090909, 0.076, 0.063670, 0.053191, -0.146341]
        found = [growth_rate(FALLING[:epoch]) for epoch in range(1, 12)]
        assert found == pytest.approx(expected, abs=5e-7)

    @pytest.mark.parametrize("threshold", [0.04, 0.05])
    def test_falling_traces_keep_the_window_open_through_epoch_10(self, threshold: float) -> None:
        assert [in_window(FALLING[:epoch], threshold) for epoch in range(12)] == [True] * 11 + [False]

    def test_worked_rising_traces_close_the_window_at_14(self) -> None:
        expected = [0.138273, 0.109048, 0.086184, 0.055937, 0.029608]
        assert [growth_rate(RISING[:epoch]) for epoch in range(10, 15)] == pytest.approx(expected, abs=5e-7)
        assert [in_window(RISING[:epoch], 0.04) for epoch in range(15)] == [True] * 14 + [False]

    def test_rate_is_the_growth_of_the_mean_padded_with_zeros(self) -> None:
        padded = [0.0] * 11 + RISING
        for epoch in range(1, len(RISING) + 1):
            last = padded[: 11 + epoch]
            new, old = sum(last[-10:]) / 10, sum(last[-11:-1]) / 10
            assert growth_rate(RISING[:epoch]) == pytest.approx((new - old) / new)

    def test_the_first_epoch_is_always_in(self) -> None:
        assert growth_rate([]) == 1
        assert in_window([], 0.04, memory=2)

    def test_an_encoder_without_gradients_has_no_growth(self) -> None:
        assert growth_rate([0.0, 0.0]) == 0

    @given(st.lists(st.floats(0.01, 10), min_size=1, max_size=30), st.floats(0.1, 100))
    def test_the_number_of_steps_per_epoch_does_not_matter(self, traces: list[float], scale: float) -> None:
        assert growth_rate([scale * value for value in traces]) == pytest.approx(growth_rate(traces), abs=1e-9)

    @pytest.mark.parametrize("memory", [1, 2, 5, 10, 20])
    def test_a_shorter_memory_closes_the_window_after_the_same_fraction_of_a_run(self, memory: int) -> None:
        """A run of 8 memories, of which the traces rise linearly for 4 and then stay."""
        closed = []
        for length in (memory, 10):
            traces = [min(epoch + 0.5, 4 * length) for epoch in range(8 * length)]
            closed.append(next(epoch for epoch in range(8 * length) if not in_window(traces[:epoch], 0.04, length)))
        assert abs(closed[0] / memory - closed[1] / 10) <= 1 / memory


class TestPull:
    def test_it_is_the_gradient_of_half_the_squared_distance(self) -> None:
        generator = torch.Generator().manual_seed(0)
        parameter, anchor, raw = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
        leaf = parameter.clone().requires_grad_()
        (2.5 / 2 * (leaf - anchor).square().sum()).backward()
        gradient = raw.clone()
        pull_({"w": gradient}, {"w": parameter}, {"w": anchor}, 2.5)
        assert leaf.grad is not None
        torch.testing.assert_close(gradient, raw + leaf.grad)

    def test_at_the_anchor_and_at_strength_zero_no_bit_changes(self) -> None:
        raw, anchor = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
        for parameter, strength in ((anchor, 0.95), (anchor + 1, 0.0)):
            gradient = raw.clone()
            pull_({"w": gradient}, {"w": parameter}, {"w": anchor}, strength)
            assert torch.equal(gradient, raw)

    def test_squares_are_averaged_per_weight_and_summed_over_weights_alone(self) -> None:
        gradients = {
            "convolution.weight": torch.full((2, 1, 3, 3), 2.0),
            "project.weight": torch.tensor([[1.0, 3.0]]),
            "attention.in_proj_weight": torch.full((6, 2), 1.0),
            "norm.weight": torch.full((2,), 7.0),
            "project.bias": torch.full((1,), 7.0),
            "class_token": torch.full((1, 1, 4), 7.0),
        }
        assert squared_gradient(gradients).item() == 4 + 5 + 1
        assert squared_gradient({"norm.weight": torch.ones(2)}).item() == 0


class Encoder(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.width = shape[0] + 2
        self.layers = nn.Sequential(nn.BatchNorm1d(shape[0]), nn.Linear(shape[0], self.width), nn.Tanh())

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layers(inputs)
        return features


def task(fusion: type[Fusion] | None = None) -> Task:
    shapes = {"audio": (3,), "video": (4,)}
    plain = Task(shapes, 3, 16, lambda _, shape: Encoder(shape))
    return plain if fusion is None else replace(plain, fusion=fusion)


def part() -> Part:
    """Return samples of which audio tells the class better."""
    generator, labels = torch.Generator().manual_seed(0), torch.arange(30) % 3
    inputs = {
        "audio": torch.eye(3)[labels] + 0.2 * torch.randn(30, 3, generator=generator),
        "video": torch.eye(4)[labels] + 2.0 * torch.randn(30, 4, generator=generator),
    }
    return Part.from_tensors(inputs, labels)


def prepare(method: Method, epochs: int = 16) -> tuple[Context, list[Batch]]:
    """Return the context at the start of the first epoch and its three batches."""
    model = initialised(method, 0).train()
    ctx = context(method, model, part(), 10, epochs=epochs, optimizer=Optimizer(lr=0.1))
    method.start_epoch(ctx)
    return ctx, list(method.batches(ctx))


def gradients(method: Method, ctx: Context, batch: Batch) -> dict[str, Tensor]:
    """Return the gradients with which one step updates, without the update."""
    forward = ctx.forward(batch)
    found = ctx.feature_gradients(forward, total(method.losses(forward, batch, ctx)))
    ctx.encoder_backward(forward, method.modulate_features(found, forward, batch, ctx))
    method.modulate_parameters(ctx.encoder_grads(), forward, batch, ctx)
    result = {name: p.grad for name, p in ctx.model.named_parameters() if p.grad is not None}
    ctx.model.zero_grad()
    return result


class WithUnimodal(Method):
    """Joint training with unimodal losses, written apart."""

    info = InfoReg.info

    def build(self) -> Any:
        return self.task.build_model(unimodal_heads=True)

    def losses(self, forward: Any, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        return super().losses(forward, batch, ctx) | unimodal_losses(forward, batch.labels)


def inforeg(**options: Any) -> InfoReg:
    return InfoReg(InfoReg.Options(**options), task())


class TestMethod:
    def test_strength_zero_is_joint_training_with_unimodal_losses_bit_for_bit(self) -> None:
        models = []
        for method in (inforeg(strength=0), WithUnimodal(Method.Options(), task())):
            ctx, batches = prepare(method)
            for batch in batches * 2:
                method.step(batch, ctx)
            models.append(ctx.model)
        assert same_parameters(*models)

    def test_the_first_step_of_an_epoch_is_not_pulled_and_the_second_is_at_one_encoder(self) -> None:
        held, free = inforeg(), inforeg(strength=0)
        (ctx, batches), (other, _) = prepare(held), prepare(free)
        for batch, pulled in zip(batches[:2], (False, True), strict=True):
            own, plain = gradients(held, ctx, batch), gradients(free, other, batch)
            differing = {name for name in own if not torch.equal(own[name], plain[name])}
            leader = max(held.task.modalities, key=lambda m: self._score(ctx, batch, m))
            encoder = {f"encoders.{leader}.{name}" for name in ctx.model.encoder_parameters(leader)}
            assert differing == (encoder if pulled else set())
            for method, run in ((held, ctx), (free, other)):
                method.step(batch, run)
            # From one state on: the second comparison isolates the pull.
            other.model.load_state_dict(ctx.model.state_dict())

    @staticmethod
    def _score(ctx: Context, batch: Batch, modality: str) -> float:
        with torch.no_grad():
            logits = ctx.model.unimodal_logits(ctx.model.encode(batch.inputs))
        return float(logits[modality].softmax(1).gather(1, batch.labels[:, None]).sum())

    def test_the_pull_is_beta_times_the_way_from_the_epochs_start(self) -> None:
        held, free = inforeg(strength={"audio": 2.0, "video": 0.5}), inforeg(strength=0)
        (ctx, batches), (other, _) = prepare(held), prepare(free)
        start = {name: value.clone() for name, value in ctx.model.state_dict().items()}
        held.step(batches[0], ctx)
        other.model.load_state_dict(ctx.model.state_dict())
        found = {m: self._score(ctx, batches[1], m) for m in ("audio", "video")}
        own, plain = gradients(held, ctx, batches[1]), gradients(free, other, batches[1])
        gap = found["audio"] - found["video"]
        leader, base = ("audio", 2.0) if gap > 0 else ("video", 0.5)
        beta = base * math.exp(math.tanh(abs(gap)))
        for name, value in ctx.model.encoder_parameters(leader).items():
            name = f"encoders.{leader}.{name}"
            torch.testing.assert_close(own[name] - plain[name], beta * (value.detach() - start[name]))

    @pytest.mark.parametrize("fusion", [None, Sum])
    def test_separate_heads_leave_the_fused_head_and_fusion_to_the_fused_loss(
        self, fusion: type[Fusion] | None
    ) -> None:
        for heads, equal in (("separate", True), ("slices", False)):
            method, joint = InfoReg(InfoReg.Options(heads=heads), task(fusion)), Joint(Joint.Options(), task(fusion))
            (ctx, batches), (other, _) = prepare(method), prepare(joint)
            own, plain = gradients(method, ctx, batches[0]), gradients(joint, other, batches[0])
            for name, value in plain.items():
                if not name.startswith("encoders."):
                    assert torch.equal(own[name], value) is equal, (heads, name)

    def test_traces_sum_the_squares_of_the_pulled_gradients_of_an_epoch(self) -> None:
        method = inforeg()
        ctx, batches = prepare(method)
        expected = dict.fromkeys(("audio", "video"), 0.0)
        for batch in batches:
            twin, copied = inforeg(), dict(method.__dict__)
            twin.__dict__.update(copied | {"sums": {m: value.clone() for m, value in method.sums.items()}})
            for name, gradient in gradients(twin, ctx, batch).items():
                if name.startswith("encoders.") and name.endswith("layers.1.weight"):
                    expected[name.split(".")[1]] += gradient.square().mean().item()
            # The norm's running statistics have moved once more, which a training step does not read.
            method.step(batch, ctx)
        method.end_epoch(ctx)
        assert {m: values[0] for m, values in method.traces.items()} == pytest.approx(expected)

    def test_a_closed_window_keeps_no_anchor_and_pulls_nothing(self) -> None:
        method = inforeg()
        method.traces = {"audio": list(FALLING), "video": list(FALLING)}
        ctx, batches = prepare(method, epochs=80)
        assert method.anchors == {}
        method.step(batches[0], ctx)
        own, free = gradients(method, ctx, batches[1]), inforeg(strength=0)
        other, _ = prepare(free)
        other.model.load_state_dict(ctx.model.state_dict())
        plain = gradients(free, other, batches[1])
        assert all(torch.equal(own[name], plain[name]) for name in own)

    @pytest.mark.parametrize(("reference", "held"), [("leader", ["video"]), ("first", [])])
    def test_the_window_is_the_leaders_own_or_that_of_the_first_modality(self, reference: str, held: list[str]) -> None:
        method = inforeg(reference=reference)
        method.traces = {"audio": list(FALLING), "video": [float(k + 1) for k in range(11)]}
        prepare(method, epochs=80)
        assert list(method.anchors) == held

    @pytest.mark.parametrize(("epochs", "open_until"), [(80, 10), (16, 2), (8, 1)])
    def test_with_falling_traces_the_window_covers_an_eighth_of_a_run(self, epochs: int, open_until: int) -> None:
        method, found = inforeg(), []
        ctx, _ = prepare(method, epochs)
        for epoch in range(epochs):
            method.traces = {m: [5 * 0.99**k for k in range(epoch)] for m in ("audio", "video")}
            method.start_epoch(ctx)
            found.append(bool(method.anchors))
        assert found == [epoch <= open_until for epoch in range(epochs)]

    def test_scaled_gap_does_not_depend_on_the_batch_size(self) -> None:
        betas = {}
        for gap in ("sum", "scaled"):
            for size in (16, 64):
                method = inforeg(gap=gap)
                ctx, _ = prepare(method)
                logits = {"audio": torch.tensor([[0.02, 0.0]]), "video": torch.zeros(1, 2)}
                forward: Any = type("F", (), {"unimodal": {m: v.expand(size, 2) for m, v in logits.items()}})
                batch = Batch({}, torch.zeros(size, dtype=torch.int64), torch.arange(size))
                empty = {m: {name: torch.zeros_like(p) for name, p in ps.items()} for m, ps in _encoders(ctx).items()}
                method.modulate_parameters(empty, forward, batch, ctx)
                betas[gap, size] = ctx.notes()["pull, audio"]
        assert betas["scaled", 16] == pytest.approx(betas["scaled", 64], rel=1e-5)
        assert betas["sum", 64] == pytest.approx(betas["scaled", 64], rel=1e-5)
        assert betas["sum", 16] < betas["sum", 64]

    def test_traces_survive_a_checkpoint(self) -> None:
        first, second = inforeg(), inforeg()
        first.traces = {"audio": [1.0, 0.5], "video": [2.0, 3.0]}
        second.load_state_dict(first.state_dict())
        assert second.traces == first.traces

    def test_strength_for_an_unknown_modality_is_refused_with_the_modalities(self) -> None:
        refusal = InfoReg.refuses(InfoReg.Options(strength={"sound": 1.0}), task())
        assert refusal == "has no modality sound to hold back; use audio, video"
        assert InfoReg.refuses(InfoReg.Options(), task()) is None

    @pytest.mark.parametrize(
        "options", [{"strength": -1}, {"strength": {"audio": -1}}, {"memory": 0}, {"heads": "none"}]
    )
    def test_bad_options_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            InfoReg.Options(**options)


def _encoders(ctx: Context) -> dict[str, dict[str, nn.Parameter]]:
    return {m: ctx.model.encoder_parameters(m) for m in ctx.model.modalities}
