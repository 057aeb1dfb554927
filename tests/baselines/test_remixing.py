"""Remixing: allocation to the least confident modality and masked batches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from baselines.remixing import (
    Remixing,
    SpecificBatch,
    allocate,
    divergence_from_uniform,
    interleave,
    warmup_epochs,
)
from benchmark.context import Context, Run
from benchmark.data import Batch
from benchmark.method import Method, Plan
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import fit, initialised
from tests.baselines.scenes import PARTS, SHAPES, resumes


def _row(*logits: float) -> Tensor:
    return torch.tensor([logits], dtype=torch.float64)


@pytest.mark.parametrize(
    ("audio", "video", "divergences", "chosen"),
    [
        (_row(2, 0.5, 0, -1, 0, 0), _row(0.5, 0.4, 0.3, 0.2, 0.1, 0), (0.723718, 0.020847), "video"),
        (_row(0.1, 0, 0, 0, 0, 0), _row(1, -1, 0, 0, 0, 0), (0.001047, 0.238484), "audio"),
        (_row(5, 0, 0, 0, 0, 0), _row(0, 0, 0, 3, 0, 0), (2.302060, 1.401598), "video"),
    ],
)
def test_worked_samples_go_to_the_less_confident_modality(
    audio: Tensor, video: Tensor, divergences: tuple[float, float], chosen: str
) -> None:
    found = (divergence_from_uniform(audio).item(), divergence_from_uniform(video).item())
    assert found == pytest.approx(divergences, abs=5e-7)
    assert allocate({"audio": audio, "video": video}).tolist() == [("audio", "video").index(chosen)]


def test_uniform_prediction_has_divergence_zero() -> None:
    assert divergence_from_uniform(torch.zeros(1, 6, dtype=torch.float64)).item() == pytest.approx(0.0, abs=1e-12)


def test_one_hot_prediction_has_divergence_2584962364_because_of_the_clip() -> None:
    found = divergence_from_uniform(_row(1000, 0, 0, 0, 0, 0)).item()
    assert found == pytest.approx(2.584962364, abs=5e-10)
    assert found < math.log2(6)


def test_equal_divergences_go_to_the_last_modality() -> None:
    same = _row(0.3, -0.2, 0.1)
    assert allocate({"audio": same, "video": same}).tolist() == [1]
    assert allocate({"a": same, "b": same, "c": same}).tolist() == [2]
    assert allocate({"a": same, "b": same, "c": 10 * same}).tolist() == [1]


def test_divergence_plus_entropy_is_log2_of_the_number_of_classes() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(1)
    entropy = -(p * p.log2()).sum(1)
    torch.testing.assert_close(
        divergence_from_uniform(logits) + entropy, torch.full((50,), math.log2(7), dtype=torch.float64)
    )


def test_allocation_does_not_depend_on_the_order_of_samples_or_on_a_shift_of_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = {m: torch.randn(30, 4, generator=generator, dtype=torch.float64) for m in "abc"}
    order = torch.randperm(30, generator=generator)
    assert torch.equal(allocate(logits)[order], allocate({m: values[order] + 3.0 for m, values in logits.items()}))


def test_interleave_takes_turns_until_all_streams_end() -> None:
    assert list(interleave([iter("ab"), iter(""), iter("1234")])) == ["a", "1", "b", "2", "3", "4"]


@pytest.mark.parametrize(("epochs", "expected"), [(60, 10), (100, 17), (20, 3), (15, 3), (6, 1), (2, 1), (1, 1)])
def test_official_warmup_of_10_in_60_epochs_scales_with_the_run(epochs: int, expected: int) -> None:
    assert warmup_epochs(epochs, 10 / 60) == expected


def test_warmup_can_be_switched_off_or_fill_the_run() -> None:
    assert warmup_epochs(15, 0.0) == 0
    assert warmup_epochs(15, 1.0) == 15


class _Encoder(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.width = shape[0] + 2
        # Two values per channel and sample: a subset's last batch may hold one sample.
        maps = nn.Linear(shape[0], 2 * self.width), nn.Unflatten(1, (self.width, 2))
        self.layers = nn.Sequential(*maps, nn.BatchNorm1d(self.width), nn.Tanh())

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.layers(inputs)
        return hidden.mean(2)


PROTOCOL = Protocol(epochs=6, batch_size=8, optimizer=Optimizer(lr=0.05))


def _task(modalities: str = "ab") -> Task:
    return Task({m: SHAPES[m] for m in modalities}, 3, 6, lambda _, shape: _Encoder(shape))


def _method(modalities: str = "ab", **options: Any) -> Remixing:
    return Remixing(Remixing.Options(**options), _task(modalities))


def _context(method: Method) -> Context:
    """Return a context at the start of the first epoch after the official warm-up."""
    model = initialised(method, 0).train()
    plan = Plan(6, 40, 15, method.task.modalities, 8)
    run = Run(method.task, plan, PARTS["train"], PARTS["val"], 0, PROTOCOL)
    ctx = Context(run, model, method.parameters(model))
    for batch in ctx.batches():
        method.step(batch, ctx)
    ctx.start(1)
    return ctx


def _specific(ctx: Context, modality: str) -> SpecificBatch:
    batch = next(ctx.batches())
    return SpecificBatch(batch.inputs, batch.labels, batch.index, modality=modality)


@pytest.mark.parametrize("modalities", ["ab", "abc"])
@pytest.mark.parametrize("order", ["blocks", "interleave"])
def test_every_sample_is_used_once_by_the_modality_it_was_given_to(modalities: str, order: str) -> None:
    method = _method(modalities, order=order)
    ctx = _context(method)
    method.start_epoch(ctx)
    assert method.allocation is not None
    batches = list(method.batches(ctx))
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(40))
    for batch in batches:
        assert isinstance(batch, SpecificBatch)
        assert (method.allocation[batch.index] == modalities.index(batch.modality)).all()


def _order(method: Remixing, allocation: list[int]) -> list[str]:
    ctx = _context(method)
    method.allocation = torch.tensor(allocation)
    return [batch.modality for batch in method.batches(ctx) if isinstance(batch, SpecificBatch)]


def test_blocks_run_from_the_last_modality_to_the_first() -> None:
    assert _order(_method("abc"), [0] * 8 + [1] * 16 + [2] * 16) == ["c", "c", "b", "b", "a"]


def test_interleaved_modalities_take_turns_until_the_longest_ends() -> None:
    assert _order(_method("abc", order="interleave"), [0] * 8 + [1] * 24 + [2] * 8) == [
        "c",
        "b",
        "a",
        "b",
        "b",
    ]


def test_a_modality_without_samples_is_skipped() -> None:
    assert _order(_method(), [0] * 40) == ["a"] * 5


def test_allocation_reads_the_unimodal_heads_in_evaluation_mode() -> None:
    method = _method()
    ctx = _context(method)
    method.start_epoch(ctx)
    model = ctx.model.eval()
    logits = model.unimodal_logits(model.encode(PARTS["train"].inputs))
    assert method.allocation is not None
    assert torch.equal(method.allocation, allocate(logits))
    assert set(method.allocation.tolist()) == {0, 1}


def test_masking_reads_the_fused_head_with_the_others_zeroed() -> None:
    method = _method(prediction="masking")
    ctx = _context(method)
    method.start_epoch(ctx)
    model = ctx.model.eval()
    features = model.encode(PARTS["train"].inputs)
    assert method.allocation is not None
    assert torch.equal(method.allocation, allocate({m: model.classify({m: z}) for m, z in features.items()}))


def test_allocation_leaves_the_model_as_it_was() -> None:
    method = _method()
    ctx = _context(method)
    before = {name: value.clone() for name, value in ctx.model.state_dict().items()}
    method.start_epoch(ctx)
    assert ctx.model.training
    assert all(torch.equal(value, before[name]) for name, value in ctx.model.state_dict().items())


def test_warmup_batches_are_joint_and_weigh_the_unimodal_losses_by_one_half() -> None:
    method = _method()
    ctx = _context(method)
    ctx.start(0)
    method.start_epoch(ctx)
    assert method.allocation is None
    batch = next(iter(method.batches(ctx)))
    assert type(batch) is Batch
    forward = ctx.forward(batch)
    losses = method.losses(forward, batch, ctx)
    assert list(losses) == ["fused", "a", "b"]
    torch.testing.assert_close(losses["b"], 0.5 * functional.cross_entropy(forward.unimodal["b"], batch.labels))


def test_specific_loss_is_that_of_a_zeroed_feature_plus_the_modality_s_own_head() -> None:
    method = _method()
    ctx = _context(method)
    batch = _specific(ctx, "a")
    forward = ctx.forward(batch)
    losses = method.losses(forward, batch, ctx)
    z = forward.features
    fused = ctx.model.head(torch.cat([z["a"], torch.zeros_like(z["b"])], dim=1))
    assert list(losses) == ["fused", "a"]
    torch.testing.assert_close(losses["fused"], functional.cross_entropy(fused, batch.labels))
    torch.testing.assert_close(losses["a"], functional.cross_entropy(forward.unimodal["a"], batch.labels))


def _gradients(method: Remixing, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor | None]:
    """Return the gradients that a batch of modality `a` hands to the optimiser."""
    ctx = _context(method)
    monkeypatch.setattr(ctx, "update", lambda _: None)
    method.step(_specific(ctx, "a"), ctx)
    return {name: parameter.grad for name, parameter in ctx.model.named_parameters()}


def test_masked_encoder_has_zero_gradients_and_its_head_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, gradient in _gradients(_method(), monkeypatch).items():
        if name.startswith("encoders.b."):
            assert gradient is not None
            assert gradient.abs().max() == 0
        elif name.startswith("unimodal_heads.b."):
            assert gradient is None
        else:
            assert gradient is not None
            assert gradient.abs().max() > 0
            if name == "head.weight":
                assert gradient[:, 6:].abs().max() == 0


def test_frozen_encoder_has_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = _gradients(_method(freeze_masked=True), monkeypatch)
    assert all((gradient is None) is (".b." in name) for name, gradient in gradients.items())


def test_shown_modality_gets_the_same_gradients_whether_the_other_is_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, frozen = (_gradients(_method(freeze_masked=freeze), monkeypatch) for freeze in (False, True))
    for name, gradient in frozen.items():
        if gradient is not None:
            torch.testing.assert_close(run[name], gradient)


def test_input_mask_trains_the_hidden_encoder_on_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = _gradients(_method(mask="input"), monkeypatch)
    bias = gradients["encoders.b.layers.2.bias"]
    assert bias is not None
    assert bias.abs().max() > 0


def test_input_mask_zeroes_every_input_but_the_batch_s_own() -> None:
    method = _method("abc", mask="input")
    ctx = _context(method)
    method.start_epoch(ctx)
    for batch in method.batches(ctx):
        assert isinstance(batch, SpecificBatch)
        assert {m for m, values in batch.inputs.items() if values.any()} == {batch.modality}


@pytest.mark.parametrize("frozen", [False, True])
def test_momentum_moves_the_masked_encoder_unless_it_is_frozen(frozen: bool) -> None:
    method = _method(freeze_masked=frozen)
    ctx = _context(method)
    before = {name: value.clone() for name, value in ctx.model.encoders["b"].state_dict().items()}
    method.step(_specific(ctx, "a"), ctx)
    same = {name: torch.equal(value, before[name]) for name, value in ctx.model.encoders["b"].state_dict().items()}
    assert same["layers.0.weight"] is frozen
    assert same["layers.2.running_mean"] is frozen
    assert all(same.values()) is frozen


@pytest.mark.parametrize(
    ("modalities", "options", "forward", "backward"),
    [
        ("ab", {}, 1 + 5 / 6, 1.0),
        ("abc", {}, 1 + 5 / 6, 1.0),
        ("ab", {"mask": "input"}, 1 + 5 / 6, 1.0),
        ("ab", {"freeze_masked": True}, 1 / 6 + 5 / 6 * 1.5, 1 / 6 + 5 / 6 / 2),
        ("abc", {"freeze_masked": True}, 1 / 6 + 5 / 6 * 4 / 3, 1 / 6 + 5 / 6 / 3),
        ("ab", {"warmup": 1.0}, 1.0, 1.0),
    ],
)
def test_counted_passes_are_those_expected(
    modalities: str, options: dict[str, Any], forward: float, backward: float
) -> None:
    method = _method(modalities, **options)
    counted = fit(method, PARTS, PROTOCOL, 0).passes
    for passes in (counted, method.expected_passes(Plan(6, 40, 15, method.task.modalities, 8))):
        assert (passes.forward, passes.backward) == pytest.approx((forward, backward))


def test_a_remixed_epoch_costs_133_percent_of_joint_training() -> None:
    assert _method(warmup=0.0).expected_passes(Plan(6, 40, 15, ("a", "b"), 8)).relative == pytest.approx(4 / 3)


def test_warmup_without_unimodal_losses_trains_what_joint_training_trains() -> None:
    assert Remixing.noop == {"warmup": 1.0, "warmup_weight": 0.0}
    joint = fit(Method(Method.Options(), _task()), PARTS, PROTOCOL, 0)
    warm = fit(_method(warmup=1.0, warmup_weight=0.0), PARTS, PROTOCOL, 0)
    trained = warm.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in joint.model.state_dict().items())
    assert [e["val"]["accuracy"] for e in warm.epochs] == [e["val"]["accuracy"] for e in joint.epochs]


def test_interrupted_run_ends_with_the_same_metrics(tmp_path: Path) -> None:
    resumes(lambda **settings: fit(_method(), PARTS, PROTOCOL, 0, **settings), tmp_path / "run.ckpt", 3)


def test_a_frozen_encoder_cannot_be_run_on_zeros() -> None:
    with pytest.raises(ValidationError, match="choose one"):
        Remixing.Options(freeze_masked=True, mask="input")
