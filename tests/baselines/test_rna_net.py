"""RNA-Net: the worked numbers, the loss's invariants, and what a host leaves to others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.joint import Joint
from baselines.rna_net import Ratio, RNANet, in_order, misalignment, norms_by_class, norms_by_sample
from benchmark.conformance_task import Widths, check_parts, check_task
from benchmark.errors import CellError
from benchmark.method import total
from benchmark.task import Task
from benchmark.training import initialised
from tests.baselines.scenes import TanhEncoder, context, random_part

VIDEO = [[3.0, 4.0], [0.0, 1.0]]
AUDIO = [[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]]


def leaf(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def close(found: Tensor | None, expected: object) -> None:
    assert found is not None
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5.1e-7)


def loss(*features: Tensor) -> Tensor:
    return misalignment(norms_by_sample(dict(enumerate(features))).mean(1))  # type: ignore[arg-type]  # any names


class TestWorkedNumbers:
    def test_mean_norms_loss_and_gradients_of_two_samples(self) -> None:
        video, audio = leaf(VIDEO), leaf(AUDIO)
        close(norms_by_sample({"v": video, "a": audio}).mean(1), [3, 2])
        found = loss(video, audio)
        found.backward()
        close(found, 0.25)
        close(video.grad, [[0.15, 0.2], [0, 0.25]])
        close(audio.grad, [[-0.375, 0, 0], [0, 0, -0.375]])

    def test_swapped_roles(self) -> None:
        close(loss(leaf(AUDIO), leaf(VIDEO)), 0.111111)

    def test_three_modalities(self) -> None:
        close(misalignment(leaf([3.0, 1.5, 2.0])), 0.4375)

    def test_twice_the_norm_costs_four_times_as_much_as_half_of_it(self) -> None:
        close(misalignment(leaf([2.0, 1.0])), 1.0)
        close(misalignment(leaf([1.0, 2.0])), 0.25)


class TestInvariants:
    def test_a_common_factor_and_an_order_of_samples_change_nothing(self) -> None:
        close(loss(7 * leaf(VIDEO), 7 * leaf(AUDIO)), 0.25)
        close(loss(leaf(VIDEO[::-1]), leaf(AUDIO)), 0.25)

    def test_rotated_features_change_nothing(self) -> None:
        turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
        close(loss(leaf(VIDEO) @ turn, leaf(AUDIO)), 0.25)

    def test_equal_norms_have_neither_loss_nor_gradient(self) -> None:
        video, audio = leaf([[3.0, 4.0]]), leaf([[0.0, 5.0, 0.0]])
        found = loss(video, audio)
        found.backward()
        close(found, 0)
        close(video.grad, [[0, 0]])

    def test_pulls_on_the_two_modalities_cancel(self) -> None:
        video, audio = leaf(VIDEO), leaf(AUDIO)
        loss(video, audio).backward()
        assert video.grad is not None
        assert audio.grad is not None
        close((video.grad * video).sum(), 1.5)
        close((audio.grad * audio).sum(), -1.5)

    def test_dead_features_below_have_no_ratio(self) -> None:
        video, audio = leaf(VIDEO), leaf([[0.0], [0.0]])
        found = loss(video, audio)
        found.backward()
        close(found, 0)
        close(video.grad, [[0, 0], [0, 0]])


def test_norms_by_class_leave_out_classes_that_do_not_occur() -> None:
    norms = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 10.0]])
    found = norms_by_class(norms, torch.tensor([0, 0, 2]))
    assert found.tolist() == [[2, 5], [2, 10]]
    assert misalignment(found).item() == pytest.approx((0 + 0.25) / 2)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [("over audio", "video flow audio"), ("first", "audio video flow"), ("last", "flow video audio")],
)
def test_order_of_the_ratio(ratio: Ratio, expected: str) -> None:
    assert in_order(["audio", "video", "flow"], ratio) == expected.split()


TASK = check_task(2, Widths.UNEQUAL)


def losses(task: Task = TASK, **options: Any) -> dict[str, Tensor]:
    method = RNANet(RNANet.Options(**options), task)
    ctx = context(method, initialised(method, 0).train(), check_parts(2)["train"], 12)
    batch = next(ctx.batches())
    return method.losses(ctx.forward(batch), batch, ctx)


def test_the_fused_loss_teaches_the_classes_and_the_alignment_does_not() -> None:
    method = RNANet(RNANet.Options(), TASK)
    assert {name: method.supervises(name) for name in losses()} == {"fused": True, "norm alignment": False}


def test_the_weight_scales_the_alignment_alone() -> None:
    once, thrice = losses(), losses(alignment_weight=3.0)
    torch.testing.assert_close(thrice["norm alignment"], 3 * once["norm alignment"])
    assert torch.equal(once["fused"], thrice["fused"])
    assert losses(alignment_weight=0.0).keys() == {"fused"}


def test_no_head_is_added_and_the_fused_one_gets_joint_trainings_gradient() -> None:
    heads = []
    for kind in (Joint, RNANet):
        method = kind(kind.Options(), TASK)
        ctx = context(method, initialised(method, 0).train(), check_parts(2)["train"], 12)
        batch = next(ctx.batches())
        forward = ctx.forward(batch)
        ctx.feature_gradients(forward, total(method.losses(forward, batch, ctx)))
        heads.append({name: p.grad for name, p in ctx.model.named_parameters() if p.grad is not None})
    assert heads[0].keys() == heads[1].keys()
    assert all(torch.equal(heads[0][name], value) for name, value in heads[1].items())


class UnitEncoder(TanhEncoder):
    """Normalises its features."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(inputs), dim=1)


def test_normalised_features_are_refused() -> None:
    task = Task({"a": (4,), "b": (3,)}, 3, 1, lambda _, shape: UnitEncoder(shape, 4))
    method = RNANet(RNANet.Options(), task)
    ctx = context(method, initialised(method, 0), random_part({"a": 4, "b": 3}, 8, 0), 8)
    batch = next(ctx.batches())
    with pytest.raises(CellError, match="take the normalisation out of encoders"):
        method.losses(ctx.forward(batch), batch, ctx)


def test_features_are_dropped_in_training_alone_and_where_asked_for() -> None:
    method = RNANet(RNANet.Options(feature_dropout={"m0": 0.5}), TASK)
    model = initialised(method, 0)
    inputs = check_parts(2)["train"].inputs
    with torch.no_grad():
        trained, judged = model.train().encode(inputs), model.eval().encode(inputs)
    assert 0.3 < (trained["m0"] == 0).double().mean() < 0.7
    assert not (trained["m1"] == 0).any()
    assert not (judged["m0"] == 0).any()


def test_dropout_for_no_modality_is_refused() -> None:
    assert "has no modality flow; use m0, m1" in str(
        RNANet.refuses(RNANet.Options(feature_dropout={"flow": 0.5}), TASK)
    )
