"""SimMMDG: the worked numbers, what each loss is invariant to and reaches, and the heads that are added."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.simmmdg import SimMMDG, closeness
from benchmark.alignment import supervised_contrast, unit_distance
from benchmark.conformance_task import Widths, check_parts, check_task
from benchmark.data import Batch
from benchmark.heads import BatchNorm, projection
from benchmark.model import MultimodalModel
from benchmark.training import initialised
from tests.baselines.scenes import context

FIRST = [[1, 0], [0, 1], [1, -1]]
SECOND = [[1, 1], [-1, 1], [2, 1]]
LABELS = torch.tensor([0, 1, 0])


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: float) -> None:
    assert found.item() == pytest.approx(expected, abs=5.1e-7)


def views(*order: int) -> list[Tensor]:
    """Return the two views of the samples in an order."""
    return [functional.normalize(double(rows), dim=1)[list(order)] for rows in (FIRST, SECOND)]


class TestWorkedNumbers:
    def test_distance_of_the_halves(self) -> None:
        close(closeness(double([[1, 2, 3, 4], [0, 0, 1, 1]])), -2.5)

    def test_translation(self) -> None:
        close(unit_distance(double([[1, 0], [0, 2]]), double([[3, 4], [1, 0]])), 1.154320)

    def test_contrast_with_and_without_the_official_factor(self) -> None:
        close(supervised_contrast(views(0, 1, 2), LABELS, 0.1), 3.050714)
        close(supervised_contrast(views(0, 1, 2), LABELS, 0.1, base_temperature=0.1), 2.135500)


class TestInvariants:
    def test_the_contrast_knows_neither_the_order_of_samples_nor_of_views(self) -> None:
        close(supervised_contrast(views(2, 0, 1), LABELS[[2, 0, 1]], 0.1), 3.050714)
        close(supervised_contrast(views(0, 1, 2)[::-1], LABELS, 0.1), 3.050714)

    def test_one_sample_has_its_other_modalities_as_positives_and_no_negative(self) -> None:
        close(supervised_contrast(views(0), LABELS[:1], 0.1), 0.0)

    @pytest.mark.parametrize("seed", range(3))
    def test_a_translation_is_off_by_at_most_two_whatever_the_lengths(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        source, target = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator)
        found = unit_distance(source, target)
        assert 0 <= found <= 2
        close(unit_distance(3 * source, 0.1 * target), found.item())
        cosine = functional.cosine_similarity(source, target, dim=1)
        close((2 - 2 * cosine).sqrt().mean(), found.item())
        close(unit_distance(-target, target), 2.0)


TASK = check_task(3, Widths.UNEQUAL)
SMALL = {"hidden": 16, "out": 8, "translator_hidden": 16}


def stepped(**options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], MultimodalModel, Batch]:
    """Return losses and the features they are of; the model drops nothing, so that they can be computed again."""
    method = SimMMDG(SimMMDG.Options(**SMALL | options), TASK)
    model = initialised(method, 0).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ctx = context(method, model, check_parts(3)["train"], 12)
    batch = next(ctx.batches())
    forward = ctx.forward(batch)
    return method.losses(forward, batch, ctx), forward.features, model, batch


def gradients(loss: Tensor, features: dict[str, Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(features.values()), allow_unused=True))


def test_the_contrast_reaches_the_shared_halves_of_all_modalities_alone() -> None:
    losses, features, _, _ = stepped()
    for gradient in gradients(losses["contrast"], features):
        assert gradient is not None
        shared, own = gradient.chunk(2, dim=1)
        assert shared.abs().sum() > 0
        assert not own.any()


def test_translation_and_distance_reach_whole_features_and_targets_too() -> None:
    losses, features, _, _ = stepped()
    for name in ("translation", "distance"):
        for gradient in gradients(losses[name], features):
            assert gradient is not None
            assert all(half.abs().sum() > 0 for half in gradient.chunk(2, dim=1))


def test_losses_are_weighted_means_over_modalities_and_ordered_pairs() -> None:
    losses, features, model, batch = stepped(contrast_weight=2.0, translation_weight=0.5, distance_weight=0.25)
    projected = [
        functional.normalize(model.get_submodule(f"projections.{m}")(z[:, : z.shape[1] // 2]), dim=1)
        for m, z in features.items()
    ]
    torch.testing.assert_close(losses["contrast"], 2 * supervised_contrast(projected, batch.labels, 0.1))
    distances = [
        unit_distance(model.get_submodule(f"translators.{a} to {b}")(features[a]), features[b])
        for a in features
        for b in features
        if a != b
    ]
    assert len(distances) == 6
    torch.testing.assert_close(losses["translation"], 0.5 * sum(distances, torch.zeros(())) / 6)
    halves = [closeness(z) for z in features.values()]
    torch.testing.assert_close(losses["distance"], 0.25 * sum(halves, torch.zeros(())) / 3)
    torch.testing.assert_close(losses["fused"], functional.cross_entropy(model.classify(features), batch.labels))


def test_without_weights_only_the_fused_loss_is_left() -> None:
    assert stepped(contrast_weight=0, translation_weight=0, distance_weight=0)[0].keys() == {"fused"}


def test_only_the_fused_loss_teaches_the_classes() -> None:
    method = SimMMDG(SimMMDG.Options(), TASK)
    assert [name for name in stepped()[0] if method.supervises(name)] == ["fused"]


def test_heads_have_the_official_sizes_by_default() -> None:
    model = SimMMDG(SimMMDG.Options(), check_task(2, Widths.UNEQUAL)).build()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2}
    assert [shapes[f"projections.m1.{layer}.weight"] for layer in (0, 3, 6)] == [(2048, 3), (2048, 2048), (128, 2048)]
    translators = [shapes[f"translators.m0 to m1.{layer}.weight"] for layer in (0, 2, 5)]
    assert translators == [(2048, 8), (2048, 2048), (6, 2048)]


def test_a_head_with_a_hidden_layer_is_the_tasks() -> None:
    model = SimMMDG(SimMMDG.Options(**SMALL), replace(TASK, hidden=5)).build()
    assert tuple(model.get_parameter("head.0.weight").shape) == (5, 24)


def test_features_without_halves_are_refused() -> None:
    odd = replace(TASK, backbone=lambda m, _shape: TanhWidth(7 if m == "m1" else 8))
    assert "needs even widths, found {'m1': 7}" in str(SimMMDG.refuses(SimMMDG.Options(), odd))
    assert SimMMDG.refuses(SimMMDG.Options(), TASK) is None


class TanhWidth(nn.Module):
    """States a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


class TestHeads:
    def test_one_sample_is_normalised_by_the_running_statistics_which_it_leaves(self) -> None:
        norm = BatchNorm(3)
        norm(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2)
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        sample = torch.tensor([[1.0, -2.0, 4.0]])
        trained = norm(sample)
        assert torch.equal(trained, norm.eval()(sample))
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())

    def test_more_samples_are_normalised_as_ever(self) -> None:
        values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        assert torch.equal(BatchNorm(3)(values), nn.BatchNorm1d(3)(values))

    def test_a_projection_trains_on_one_sample(self) -> None:
        head = projection(4, 6, 2).train()
        head(torch.ones(1, 4)).sum().backward()
        assert all(parameter.grad is not None for parameter in head.parameters())
