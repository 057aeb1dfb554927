"""Corruptions: graded, the same for everyone, and of one modality alone."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from benchmark.corruptions import CORRUPTIONS, SEVERITIES, blur, corrupted, dropout, noise
from benchmark.data import Part

SHAPES = [(16,), (1, 3, 8), (3, 20, 64), (3, 2, 12, 12)]


def values(shape: tuple[int, ...], count: int = 40) -> Tensor:
    # Neighbours are alike, as in images and spectrograms: the smallest window takes nearly all of white noise.
    return torch.randn(count, *shape, generator=Generator().manual_seed(1)).cumsum(-1)


def apply(name: str, inputs: Tensor, severity: int) -> Tensor:
    return CORRUPTIONS[name](inputs, severity, Generator().manual_seed(0))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_severity_changes_more_than_the_one_before(name: str, shape: tuple[int, ...]) -> None:
    inputs = values(shape)
    before = inputs.clone()
    changes = [(apply(name, inputs, severity) - inputs).norm().item() for severity in SEVERITIES]
    assert 0 < changes[0] < changes[1] < changes[2]
    assert torch.equal(inputs, before)


@pytest.mark.parametrize(("severity", "sd"), [(1, 0.5), (2, 1.0), (3, 2.0)])
def test_noise_has_the_stated_spread(severity: int, sd: float) -> None:
    assert noise(torch.zeros(400, 100), severity, Generator().manual_seed(0)).std().item() == pytest.approx(
        sd, rel=0.02
    )


@pytest.mark.parametrize(("severity", "blank"), [(1, [3, 4]), (2, [2, 3, 4, 5]), (3, [1, 2, 3, 4, 5, 6])])
def test_dropout_blanks_a_stripe_of_a_quarter_a_half_and_three_quarters(severity: int, blank: list[int]) -> None:
    found = dropout(torch.ones(2, 1, 3, 8), severity, Generator())
    assert (found == 0).nonzero()[:, -1].unique().tolist() == blank
    assert (found == 0).float().mean().item() == severity / 4


def test_blur_averages_neighbours_and_ignores_what_is_outside() -> None:
    vector = torch.tensor([[0.0, 3.0, 6.0, 0.0]])
    assert blur(vector, 1, Generator()).tolist() == [[1.5, 3.0, 3.0, 3.0]]
    spot = torch.zeros(1, 2, 5, 5)
    spot[0, 0, 2, 2] = 9.0
    found = blur(spot, 1, Generator())
    assert torch.equal(found[0, 0, 1:4, 1:4], torch.ones(3, 3))
    assert found[0, 0].sum() == 9
    assert not found[0, 1].any()


def part() -> Part:
    return Part.from_tensors({"a": values((1, 3, 7)), "b": values((5,))}, torch.zeros(40))


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("modality", ["a", "b"])
def test_only_the_named_modality_changes_and_every_call_yields_the_same(name: str, modality: str) -> None:
    clean = next(part().batches(40)).inputs
    first, again = (next(corrupted(part(), modality, name, 2, 40)).inputs for _ in range(2))
    other = {"a": "b", "b": "a"}[modality]
    assert torch.equal(first[other], clean[other])
    assert not torch.equal(first[modality], clean[modality])
    assert torch.equal(first[modality], again[modality])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_a_sample_gets_does_not_depend_on_the_batch_size(name: str) -> None:
    whole, pieces = (
        torch.cat([batch.inputs["a"] for batch in corrupted(part(), "a", name, 3, size)]) for size in (40, 7)
    )
    assert torch.equal(whole, pieces)
