"""The balance / non-conflict plane and the pass counter against hand-computed numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from benchmark.diagnostics import Diagnostics, PassCounter, balance_factor

CPU = torch.device("cpu")


@pytest.mark.parametrize(("share", "factor"), [(0.5, 1.0), (0.6, 0.92), (0.75, 0.5), (0.9, -0.28), (1.0, -1.0)])
def test_balance_factor_of_an_energy_share(share: float, factor: float) -> None:
    assert balance_factor({"a": share, "b": 1 - share}) == pytest.approx(factor)


def test_balance_factor_of_three_modalities_is_the_mean_over_pairs() -> None:
    assert balance_factor({"a": 4.0, "b": 1.0, "c": 1.0}) == pytest.approx((0.28 + 0.28 + 1.0) / 3)


def test_balance_factor_without_energy_is_one() -> None:
    assert balance_factor({"a": 0.0, "b": 0.0}) == 1.0


def test_energy_is_the_squared_frobenius_norm_times_the_squared_learning_rate_cumulated() -> None:
    diagnostics = Diagnostics(("a", "b"), CPU)
    for lr in (0.1, 0.2):
        diagnostics.observe({"a": torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "b": torch.tensor([[1.0], [0.0]])}, lr)
    record = diagnostics.end_epoch()
    assert record["energy"] == pytest.approx({"a": 25 * 0.05, "b": 0.05})
    assert record["cosine"] is None


def test_cosine_is_averaged_over_samples_within_a_step_and_described_over_steps() -> None:
    diagnostics = Diagnostics(("a", "b"), CPU)
    same = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    half = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    diagnostics.observe({"a": same, "b": same}, 1.0)
    diagnostics.observe({"a": same, "b": half}, 1.0)
    assert diagnostics.end_epoch()["cosine"] == pytest.approx({"mean": 0.75, "q10": 0.55, "q50": 0.75, "q90": 0.95})


def test_a_zero_gradient_has_cosine_zero() -> None:
    diagnostics = Diagnostics(("a", "b"), CPU)
    diagnostics.observe({"a": torch.zeros(2, 2), "b": torch.ones(2, 2)}, 1.0)
    cosine = diagnostics.end_epoch()["cosine"]
    assert cosine is not None
    assert cosine["mean"] == 0.0


def test_passes_count_samples_through_each_encoder_and_its_clones() -> None:
    encoders = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    counter = PassCounter(("a", "b"))
    counter.watch(encoders)
    x = torch.randn(5, 2)
    encoders["a"](x).sum().backward()
    copy.deepcopy(encoders["a"])(x).sum().backward()
    with torch.no_grad():
        encoders["b"](x)
    counter.paused = True
    encoders["b"](x)
    assert counter.state_dict() == {"forward": {"a": 10, "b": 5}, "backward": {"a": 10, "b": 0}}
    passes = counter.passes(samples=5, epochs=1)
    assert (passes.forward, passes.backward) == (1.5, 1.0)
    assert passes.relative == pytest.approx(3.5 / 3)


def test_a_graph_walked_twice_counts_two_backwards() -> None:
    encoders = nn.ModuleDict({"a": nn.Linear(2, 2)})
    counter = PassCounter(("a",))
    counter.watch(encoders)
    out = encoders["a"](torch.randn(4, 2)).sum()
    out.backward(retain_graph=True)
    out.backward()
    assert counter.backward == {"a": 8}


def test_an_encoder_is_counted_once_however_often_it_is_watched() -> None:
    encoders = nn.ModuleDict({"a": nn.Linear(2, 2)})
    counter = PassCounter(("a",))
    counter.watch(encoders)
    counter.watch(copy.deepcopy(encoders))
    counter.watch(encoders)
    fresh = nn.ModuleDict({"a": nn.Linear(2, 2)})
    counter.watch(fresh)
    for watched in (encoders, fresh):
        watched["a"](torch.randn(4, 2))
    assert counter.forward == {"a": 8}


def test_the_plane_keeps_at_most_eight_evenly_spaced_steps_with_balance_and_cosine() -> None:
    diagnostics = Diagnostics(("a", "b"), CPU)
    one = torch.tensor([[1.0, 0.0]])
    for step in range(20):
        diagnostics.observe({"a": one, "b": one if step else 3 * one}, 1.0)
    plane = diagnostics.end_epoch()["plane"]
    assert [share for share, _, _ in plane] == [0.1, 0.25, 0.35, 0.5, 0.6, 0.75, 0.85, 1.0]
    # After two steps the energies are 2 and 10.
    assert plane[0][1:] == pytest.approx([8 * (2 / 12) * (10 / 12) - 1, 1.0])


def test_energies_go_on_where_the_last_epoch_ended() -> None:
    diagnostics = Diagnostics(("a", "b"), CPU)
    for _ in range(2):
        diagnostics.observe({"a": torch.ones(1, 1), "b": torch.ones(1, 1)}, 2.0)
        record = diagnostics.end_epoch()
    assert record["energy"] == {"a": 8.0, "b": 8.0}


def test_a_step_on_one_modality_adds_to_its_energy_alone_and_has_no_cosine() -> None:
    diagnostics = Diagnostics(("a", "b"), CPU)
    diagnostics.observe({"b": torch.ones(1, 2)}, 1.0)
    record = diagnostics.end_epoch()
    assert record["energy"] == pytest.approx({"a": 0.0, "b": 2.0})
    assert record["plane"] == [[1.0, -1.0, None]]
