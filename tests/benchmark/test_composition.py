"""A modulation around a host that it does not know: what comes from which, and what does not go together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.active_learning import ActiveLearning
from baselines.base import Base
from baselines.ogm_ge import OGMGE
from benchmark.composition import composed
from benchmark.conformance import CHECKS, check_method
from benchmark.conformance_task import SOURCES, Widths, check_parts, check_protocol, check_task
from benchmark.conformance_trial import Outcome
from benchmark.errors import UsageError
from benchmark.method import Method
from benchmark.protocol import Cell, Protocol, validated
from benchmark.registry import METHODS
from benchmark.run import build_method
from benchmark.training import Fit, fit
from methods.gmp import GMP
from methods.rgm import RGM

TASK = check_task(2, Widths.EQUAL)


def trained(method: type[Method], **options: Any) -> Fit:
    task = replace(TASK, domains=SOURCES[: method.info.min_domains])
    built = method(validated(method.Options, options, method.__name__), task)
    return fit(built, check_parts(2), check_protocol(), 0)


def same(first: Fit, second: Fit) -> bool:
    theirs: dict[str, Tensor] = second.model.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.model.state_dict().items())


def test_a_modulation_that_does_nothing_leaves_the_host_bit_for_bit() -> None:
    assert same(trained(composed(ActiveLearning, OGMGE), alpha=0.0, noise="none"), trained(ActiveLearning))
    assert same(trained(composed(Base, RGM), components=[]), trained(Base))


def test_around_joint_training_a_modulation_is_the_method_itself() -> None:
    assert same(trained(METHODS.load("joint+ogm_ge")), trained(OGMGE))
    assert same(trained(METHODS.load("joint+rgm")), trained(RGM))
    assert same(trained(METHODS.load("joint+gmp")), trained(GMP))


def test_a_composition_differs_from_host_and_modulation() -> None:
    both = trained(METHODS.load("active_learning+rgm"))
    assert not same(both, trained(ActiveLearning))
    assert "unimodal_heads.m0.weight" in both.model.state_dict()


@pytest.mark.parametrize(
    "name", ["active_learning+ogm_ge", "active_learning+rgm", "base+rgm", "active_learning+gmp", "cmrf+gmp"]
)
def test_a_composition_conforms_like_a_method(name: str) -> None:
    checks = {check: function for check, function in CHECKS.items() if check != "cost"}
    records = list(check_method(METHODS.load(name), name, checks=checks))
    failed = [f"{record.check}: {record.reason}" for record in records if record.outcome is Outcome.FAILED]
    assert not failed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("active_learning+joint", "Joint training modulates no gradient"),
        ("joint+active_learning", r"Active learning \(BMMAL\) changes build, batches, losses; only what modulates"),
        ("ogm_ge+rgm", "OGM-GE has its own modulate_parameters, which leaves no room"),
        ("agm+ogm_ge", "AGM has its own step, which leaves no room"),
        ("joint+ogm_gee", "Did you mean 'ogm_ge'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        METHODS.load(name)


def test_an_adversary_comes_from_the_host_or_from_a_modulation_about_domains() -> None:
    assert not METHODS.load("joint+ogm_ge").adversarial
    assert METHODS.load("base+ogm_ge").adversarial
    assert METHODS.load("joint+gmp").adversarial


def test_a_composition_is_described_and_digested_as_both() -> None:
    entry = METHODS.entry("base+rgm")
    assert entry.description() == "base with its gradients modulated by rgm."
    assert entry.kind == "proposed"
    assert {"base.py", "joint.py", "rgm.py"} <= {file.name for file in entry.source_files()}
    digests = {METHODS.entry(name).source_digest() for name in ("base", "rgm", "base+rgm", "joint+rgm")}
    assert len(digests) == 4


def test_a_cell_of_a_composition_takes_options_of_both() -> None:
    cell = Cell(
        dataset="digits",
        backbone="small",
        fusion="concat",
        method="active_learning+rgm",
        options={"mode": "full", "blocks": 4},
        protocol=Protocol(epochs=1),
        seed=0,
    )
    options = build_method(cell).options
    assert (options.mode, options.blocks) == ("full", 4)
