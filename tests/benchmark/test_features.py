"""Recorded features: whose they are, what is kept of them, and that recording them changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.base import Base
from baselines.joint import Joint
from benchmark.conformance_task import Widths, check_parts, check_protocol, check_task
from benchmark.data import TaskData
from benchmark.errors import UsageError
from benchmark.features import DIMENSIONS, evenly_chosen, principal_components, recorded_features
from benchmark.model import same_parameters
from benchmark.protocol import Cell, Protocol, validated
from benchmark.registry import METHODS
from benchmark.training import Fit, fit, initialised

DOMAINS = ("north", "south", "west")
PLAIN = check_task(2, Widths.EQUAL)
TASK = replace(PLAIN, domains=("north", "west"))


def parts() -> dict[str, Any]:
    labelled = {name: replace(part, domains=torch.arange(len(part)) % 3) for name, part in check_parts(2).items()}
    return TaskData(labelled, ("m0", "m1"), {}, ("0", "1", "2"), DOMAINS, "").without("south")


def trained(features: int) -> Fit:
    return fit(Base(Base.Options(), TASK), parts(), check_protocol().changed({"features": features, "epochs": 3}), 0)


@pytest.fixture(scope="module")
def with_features() -> Fit:
    return trained(5)


def test_some_test_samples_of_every_source_and_of_the_target_are_recorded(with_features: Fit) -> None:
    for found in with_features.final.values():
        assert found["features"]["sources"] == ["north", "west"]
        assert found["features"]["domains"] == [0] * 5 + [1] * 5 + [None] * 5
        assert len(found["features"]["labels"]) == len(found["features"]["values"]) == 15
        assert 0 < found["features"]["variance"] <= 1


def test_the_recorded_labels_are_those_of_evenly_spaced_samples(with_features: Fit) -> None:
    test = parts()["test"]
    assert with_features.final["last"]["features"]["labels"][10:] == test.labels[evenly_chosen(5, len(test))].tolist()


def test_recording_features_changes_nothing_else(with_features: Fit) -> None:
    plain = trained(0)
    assert plain.epochs == with_features.epochs
    assert same_parameters(plain.model, with_features.model)
    assert (plain.passes, plain.steps) == (with_features.passes, with_features.steps)
    for rule, found in with_features.final.items():
        assert {name: value for name, value in found.items() if name != "features"} == plain.final[rule]


def test_the_features_of_the_last_epoch_are_those_of_the_model_that_is_left() -> None:
    run = trained(2)
    own = recorded_features(run.model, parts(), TASK.domains, 2, 8)
    assert run.final["last"]["features"] == own
    assert run.model.training


def test_without_domains_the_test_part_is_recorded() -> None:
    run = fit(Joint(Joint.Options(), PLAIN), check_parts(2), check_protocol().changed({"features": 4}), 0)
    found = run.final["best_val"]["features"]
    assert (found["sources"], found["domains"], len(found["values"])) == ([], [None] * 4, 4)


def test_a_domain_with_fewer_samples_gives_all_that_it_has() -> None:
    every = trained(10_000).final["last"]["features"]
    count = {name: len(part) for name, part in parts().items()}
    assert len(every["values"]) == count["sources"] + count["test"]


def test_numbers_are_plain_and_have_four_digits(with_features: Fit) -> None:
    values = with_features.final["last"]["features"]["values"]
    assert json.loads(json.dumps(values)) == values
    assert all(value == float(f"{value:.4g}") for row in values for value in row)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_has_features_to_record(name: str) -> None:
    kind = METHODS.load(name)
    method = kind(kind.Options(**kind.sample_options(TASK)), TASK)
    found = recorded_features(initialised(method, 0), parts(), TASK.domains, 3, 8)
    assert len(found["values"]) == 9
    assert any(map(any, found["values"]))


def scores(vectors: Tensor) -> Tensor:
    return principal_components(vectors)[0]


def test_components_keep_distances_and_fall_in_variance() -> None:
    vectors = torch.randn(40, 9, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 10)
    found = scores(vectors)
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(vectors, vectors), atol=1e-5, rtol=1e-7)
    variance = found.var(0)
    assert torch.equal(variance, variance.sort(descending=True).values)


def test_at_most_sixteen_components_are_kept_and_their_share_is_told() -> None:
    vectors = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    found, share = principal_components(vectors)
    assert found.shape == (60, DIMENSIONS)
    assert share == pytest.approx(float(found.square().sum() / (vectors - vectors.mean(0)).double().square().sum()))
    assert share < 1


def test_the_sign_of_a_component_does_not_depend_on_the_library() -> None:
    line = torch.tensor([[-3.0, -3.0], [1.0, 1.0], [2.0, 2.0]])
    assert scores(line)[0, 0] == pytest.approx(-3 * 2**0.5)
    assert scores(-line)[0, 0] == pytest.approx(3 * 2**0.5)


def test_vectors_that_are_all_the_same_have_nothing_left_out() -> None:
    found, share = principal_components(torch.ones(4, 3))
    assert not found.any()
    assert share == 1


def test_chosen_samples_are_evenly_spaced() -> None:
    assert evenly_chosen(3, 9).tolist() == [0, 3, 6]
    assert evenly_chosen(5, 3).tolist() == [0, 1, 2]
    assert evenly_chosen(5, 0).tolist() == []


@pytest.mark.parametrize("value", [-1, 2.5, "many"])
def test_a_number_of_samples_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=rf"features: Input should be .*Found {value!r}"):
        validated(Protocol, {"epochs": 1, "features": value}, "Protocol")


def cell(**fields: Any) -> Cell:
    protocol = Protocol(epochs=1, **fields)
    return Cell(dataset="digits", backbone="small", fusion="concat", method="joint", protocol=protocol, seed=0)


def test_a_protocol_that_records_none_is_what_it_was_before_there_were_features() -> None:
    assert "features" not in Protocol(epochs=1).model_dump()
    assert cell(features=0).key() == cell().key() != cell(features=1).key()
    assert Protocol(epochs=1).changed({"features": 3}).changed({"epochs": 2}).features == 3
