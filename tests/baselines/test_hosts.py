"""Methods for several domains as hosts: a modulation composes with each, and each says what teaches the classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmark.composition import composed
from benchmark.conformance_task import SOURCES, Widths, check_parts, check_protocol, check_task
from benchmark.method import Method, Passes
from benchmark.model import same_parameters
from benchmark.protocol import validated
from benchmark.registry import METHODS
from benchmark.training import Fit, fit
from tests.baselines.scenes import context

HOSTS = ["cmrf", "moosa", "rna_net", "simmmdg"]
TASK = check_task(2, Widths.EQUAL)
PROTOCOL = check_protocol().changed({"epochs": 3})


def built(kind: type[Method], hidden: int | None = None, **options: Any) -> Method:
    task = replace(TASK, hidden=hidden, epochs=3)
    return kind(validated(kind.Options, {**kind.sample_options(task), **options}, kind.__name__), task)


def trained(method: Method) -> Fit:
    return fit(method, check_parts(2), PROTOCOL, 0)


@pytest.mark.parametrize("hidden", [None, 16])
@pytest.mark.parametrize("name", HOSTS)
def test_a_modulation_that_does_nothing_leaves_the_host_bit_for_bit(name: str, hidden: int | None) -> None:
    host = METHODS.load(name)
    plain = trained(built(host, hidden))
    idle = trained(built(composed(host, METHODS.load("ogm_ge")), hidden, alpha=0.0, noise="none"))
    assert same_parameters(plain.model, idle.model)
    assert idle.epochs == plain.epochs


@pytest.mark.parametrize("modulation", ["ogm_ge", "rgm"])
@pytest.mark.parametrize("name", HOSTS)
def test_a_modulation_trains_around_a_host_and_changes_it(name: str, modulation: str) -> None:
    both = trained(built(METHODS.load(f"{name}+{modulation}")))
    plain = trained(built(METHODS.load(name)))
    assert not same_parameters(both.model, plain.model)
    assert both.passes == plain.passes


@pytest.mark.parametrize("name", HOSTS)
def test_gmp_around_a_host_takes_two_more_backward_passes_and_no_forward(name: str) -> None:
    def passes(method: str) -> Passes:
        task = replace(TASK, epochs=3, domains=SOURCES)
        kind = METHODS.load(method)
        options = validated(kind.Options, kind.sample_options(task), method)
        return fit(kind(options, task), check_parts(2), PROTOCOL, 0).passes

    plain, around = passes(name), passes(f"{name}+gmp")
    assert (around.forward, around.backward) == (plain.forward, plain.backward + 2)


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_hides_no_domain_and_needs_none(name: str) -> None:
    host = METHODS.load(name)
    assert not host.adversarial
    assert host.info.min_domains == 0
    assert host.refuses(built(host).options, replace(TASK, domains=SOURCES)) is None


@pytest.mark.parametrize("name", HOSTS)
def test_what_teaches_the_classes_is_known_by_name_and_every_loss_is_finite(name: str) -> None:
    host = built(METHODS.load(name))
    model = host.build().train()
    ctx = context(host, model, check_parts(2)["train"], 12)
    host.start_epoch(ctx)
    batch = next(ctx.batches())
    losses = host.losses(ctx.forward(batch), batch, ctx)
    teaching = {loss for loss in losses if host.supervises(loss)}
    assert teaching
    assert teaching < losses.keys()
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
