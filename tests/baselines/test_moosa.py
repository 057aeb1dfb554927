"""MOOSA: the worked numbers, the jigsaw's rows, the masks, and what is SimMMDG's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.moosa import (
    MOOSA,
    confidence_weights,
    drawn_permutations,
    entropies,
    jigsaw,
    masked,
    permuted_columns,
    softened_entropy,
    weighted_cross_entropy,
)
from baselines.simmmdg import SimMMDG
from benchmark.conformance_task import Widths, check_parts, check_task
from benchmark.model import MultimodalModel
from benchmark.training import initialised
from tests.baselines.scenes import context

LABELS = torch.tensor([0])


def logits() -> Tensor:
    """Return those of video, audio and the fused head for one sample."""
    rows = [[[2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]]]
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def close(found: Tensor | None, expected: object) -> None:
    assert found is not None
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5.1e-7)


class TestWorkedNumbers:
    def test_entropies_weights_and_the_weighted_loss(self) -> None:
        values = logits()
        close(entropies(values)[:, 0], [0.665573, 1.098612, 1.017357])
        weights = confidence_weights(values)
        close(weights[:, 0], [0.425176, 0.275742, 0.299082])
        close(weighted_cross_entropy(values, LABELS, weights), 0.662589)

    def test_gradients_with_attached_and_detached_weights(self) -> None:
        values = logits()
        weighted_cross_entropy(values, LABELS, confidence_weights(values)).backward()
        assert values.grad is not None
        close(values.grad[0, 0], [-0.150874, 0.075437, 0.075437])
        values = logits()
        weighted_cross_entropy(values, LABELS, confidence_weights(values).detach()).backward()
        assert values.grad is not None
        close(values.grad[0, 0], [-0.090568, 0.045284, 0.045284])

    def test_the_weighted_entropy(self) -> None:
        close(0.001 * softened_entropy(logits()), 0.000927)

    def test_a_classifier_that_has_not_learnt_pays_the_logarithm_of_the_permutations(self) -> None:
        columns = permuted_columns([8, 8], 4, drawn_permutations(8, 128))
        rows, numbers = jigsaw(torch.randn(5, 16), columns)
        assert len(rows) == 128 * 5
        loss = functional.cross_entropy(rows.new_zeros(len(rows), 128).double(), numbers)
        close(loss, 4.852030)


class TestInvariants:
    def test_equally_sure_predictors_and_a_high_temperature_give_equal_weights(self) -> None:
        turned = torch.stack([torch.eye(3)[[k]] for k in range(3)])
        torch.testing.assert_close(confidence_weights(turned), torch.full((3, 1), 1 / 3))
        close(confidence_weights(logits(), temperature=1e9)[:, 0], [1 / 3] * 3)

    def test_certain_predictors_have_finite_gradients(self) -> None:
        values = torch.tensor([[[500.0, 0.0]], [[0.0, 500.0]]], requires_grad=True)
        weighted_cross_entropy(values, LABELS, confidence_weights(values)).backward()
        assert values.grad is not None
        assert torch.isfinite(values.grad).all()

    @pytest.mark.parametrize("widths", [[8, 4], [8, 6, 10]])
    def test_a_row_holds_its_samples_entries_in_the_order_of_its_permutation(self, widths: list[int]) -> None:
        torch.manual_seed(0)
        permutations = drawn_permutations(2 * len(widths), 20)
        columns = permuted_columns(widths, 2, permutations)
        features = torch.randn(3, sum(widths))
        rows, numbers = jigsaw(features, columns)
        pieces = [piece for whole in features[1].split(widths) for piece in whole.tensor_split(2)]
        for row, number in zip(rows[20:40], numbers[20:40], strict=True):
            assert torch.equal(row, torch.cat([pieces[place] for place in permutations[int(number)]]))
            assert torch.equal(row.sort().values, features[1].sort().values)

    def test_permutations_differ_and_may_be_all(self) -> None:
        assert len({tuple(p) for p in drawn_permutations(4, 24)}) == 24

    def test_no_mask_leaves_features_and_a_full_one_nothing(self) -> None:
        features, generator = torch.randn(50, 40), torch.Generator().manual_seed(0)
        assert torch.equal(masked(features, 0.0, generator), features)
        assert not masked(features, 1.0, generator).any()
        some = masked(features, 0.3, generator)
        assert (some == 0).double().mean().item() == pytest.approx(0.3, abs=0.03)
        assert torch.equal(some[some != 0], features[some != 0])


SMALL = {"hidden": 16, "out": 8, "translator_hidden": 16, "jigsaw_hidden": 16, "jigsaw_permutations": 20}
TASK = check_task(2, Widths.UNEQUAL)


def stepped(
    kind: type[SimMMDG], modalities: int = 2, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor], MultimodalModel, Tensor]:
    """Return losses, the features they are of, the model, whose translators drop nothing, and the labels."""
    chosen = {name: v for name, v in (SMALL | options).items() if name in kind.Options.model_fields}
    method = kind(kind.Options(**chosen), check_task(modalities, Widths.UNEQUAL))
    model = initialised(method, 0).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ctx = context(method, model, check_parts(modalities)["train"], 12)
    batch = next(ctx.batches())
    forward = ctx.forward(batch)
    return method.losses(forward, batch, ctx), forward.features, model, batch.labels


def test_without_mask_the_losses_on_features_are_simmmdgs() -> None:
    # Drawn behind the unimodal heads, which SimMMDG has not: weights are copied.
    def losses(kind: type[SimMMDG], source: MultimodalModel | None) -> tuple[dict[str, Tensor], MultimodalModel]:
        method = kind(kind.Options(**{n: v for n, v in OPTIONS.items() if n in kind.Options.model_fields}), TASK)
        model = initialised(method, 0).eval()
        if source is not None:
            model.load_state_dict({n: source.state_dict()[n] for n in model.state_dict()})
        ctx = context(method, model, check_parts(2)["train"], 12)
        batch = next(ctx.batches())
        return method.losses(ctx.forward(batch), batch, ctx), model

    OPTIONS = {**SMALL, "mask_ratio": 0.0, "jigsaw_weight": 0.0, "entropy_weight": 0.0}  # noqa: N806
    own, model = losses(MOOSA, None)
    theirs, _ = losses(SimMMDG, model)
    assert own.keys() - theirs.keys() == {"classification"}
    assert all(torch.equal(own[name], theirs[name]) for name in theirs.keys() - {"fused"})


def test_a_full_mask_gives_the_translators_zeros_and_keeps_the_targets() -> None:
    losses, features, model, _ = stepped(MOOSA, mask_ratio=1.0)
    names = [("m0", "m1"), ("m1", "m0")]
    distances = []
    for source, target in names:
        blind = model.get_submodule(f"translators.{source} to {target}")(torch.zeros_like(features[source]))
        distances.append((functional.normalize(blind) - functional.normalize(features[target])).norm(dim=1).mean())
    torch.testing.assert_close(losses["translation"], 0.1 * sum(distances) / 2)


@pytest.mark.parametrize("modalities", [2, 3])
def test_predictors_are_all_modalities_heads_and_the_fused_one(modalities: int) -> None:
    losses, features, model, labels = stepped(MOOSA, modalities, entropy_weight=2.0)
    predictors = torch.stack([*model.unimodal_logits(features).values(), model.classify(features)])
    assert len(predictors) == modalities + 1
    expected = weighted_cross_entropy(predictors, labels, confidence_weights(predictors))
    torch.testing.assert_close(losses["classification"], expected)
    torch.testing.assert_close(losses["entropy"], 2 * softened_entropy(predictors))


def test_the_jigsaw_reaches_all_features_and_starts_near_chance() -> None:
    losses, features, _, _ = stepped(MOOSA)
    assert losses["jigsaw"].item() == pytest.approx(math.log(20), abs=0.3)
    gradients = torch.autograd.grad(losses["jigsaw"], list(features.values()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_only_the_weighted_classification_teaches_the_classes() -> None:
    names = stepped(MOOSA)[0]
    assert names.keys() == {"classification", "entropy", "jigsaw", "contrast", "translation", "distance"}
    assert [name for name in names if MOOSA(MOOSA.Options(), TASK).supervises(name)] == ["classification"]


@pytest.mark.parametrize(
    ("modalities", "chunks", "pieces"),
    [(2, "by modalities", 8), (2, "four", 8), (3, "by modalities", 6), (3, "four", 12)],
)
def test_three_modalities_have_two_chunks_or_the_papers_four(modalities: int, chunks: str, pieces: int) -> None:
    widths = [8, 6, 10][:modalities]
    _, _, model, _ = stepped(MOOSA, modalities, jigsaw_chunks=chunks)
    columns = model.get_buffer("jigsaw_columns")
    assert columns.shape == (20, sum(widths))
    assert torch.equal(columns.sort(1).values, torch.arange(sum(widths)).expand(20, -1))
    # Neighbours that stay neighbours are inside a chunk: all but one column of every chunk have theirs.
    inside = {int(c) for c in range(sum(widths) - 1) if neighbours(columns, c)}
    assert len(inside) == sum(widths) - pieces


def neighbours(columns: Tensor, column: int) -> bool:
    """Return whether the next column follows this one in every permutation."""
    places = columns.argsort(1)
    return bool((places[:, column + 1] == places[:, column] + 1).all())


def test_more_permutations_than_there_are_are_refused() -> None:
    three = check_task(3, Widths.UNEQUAL)
    assert "has 720 permutations" in str(MOOSA.refuses(MOOSA.Options(jigsaw_permutations=721), three))
    assert MOOSA.refuses(MOOSA.Options(jigsaw_permutations=721), TASK) is None


def test_permutations_are_a_seeds_own() -> None:
    method = MOOSA(MOOSA.Options(**SMALL), TASK)
    first, again, other = (initialised(method, seed).get_buffer("jigsaw_columns") for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
