"""Gradient mathematics against hand-computed numbers."""

from __future__ import annotations

import pytest
import torch

from benchmark.gradients import cosine, flatten, min_norm_weight, project_conflict, unflatten

A, B = torch.tensor([3.0, 1.0, -2.0]), torch.tensor([-1.0, 2.0, 4.0])


def test_unflatten_undoes_flatten() -> None:
    tensors = [torch.arange(6.0).view(2, 3), torch.arange(2.0), torch.tensor(5.0)]
    back = unflatten(flatten(tensors), tensors)
    assert all(torch.equal(x, y) for x, y in zip(tensors, back, strict=True))


def test_cosine_of_conflicting_vectors() -> None:
    assert cosine(A, B).item() == pytest.approx(-0.524891, abs=1e-6)


def test_cosine_with_a_zero_vector_is_zero() -> None:
    assert cosine(A, torch.zeros(3)).item() == 0.0


def test_a_conflicting_component_is_removed() -> None:
    projected = project_conflict(A, B)
    assert projected.tolist() == pytest.approx([2.571429, 1.857143, -0.285714], abs=1e-6)
    assert torch.dot(projected, B).item() == pytest.approx(0.0, abs=1e-6)


def test_agreeing_vectors_and_zero_vectors_are_left_alone() -> None:
    assert torch.equal(project_conflict(A, A + 1), A)
    assert torch.equal(project_conflict(A, torch.zeros(3)), A)


@pytest.mark.parametrize(
    ("a", "b", "weight"),
    [
        ([3.0, 0.0], [-1.0, 1.0], 0.294118),
        ([1.0, 0.0], [0.0, 2.0], 0.8),
        ([1.0, 0.0], [3.0, 0.0], 1.0),
        ([1.0, 0.0], [1.0, 0.0], 0.5),
    ],
)
def test_min_norm_weight(a: list[float], b: list[float], weight: float) -> None:
    assert min_norm_weight(torch.tensor(a), torch.tensor(b)) == pytest.approx(weight, abs=1e-6)


def test_no_other_weight_gives_a_smaller_norm() -> None:
    best = min_norm_weight(A, B)
    norms = [(s * A + (1 - s) * B).norm() for s in torch.linspace(0, 1, 101)]
    assert (best * A + (1 - best) * B).norm() <= min(norms) + 1e-6
