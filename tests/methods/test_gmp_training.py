"""GMP in training: which gradients it changes, alone and around another method, and what it records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.base import Base
from baselines.joint import Joint
from benchmark.composition import composed
from benchmark.conformance_task import BATCH, SOURCES, Widths, check_parts, check_protocol, check_task
from benchmark.context import Context, Forward, begin
from benchmark.data import Batch
from benchmark.errors import UsageError
from benchmark.method import Method, Plan
from benchmark.protocol import validated
from benchmark.training import fit, initialised
from methods.gmp import GMP, Variant, coefficient, confidences, modulate, ratios

TASK = replace(check_task(2, Widths.UNEQUAL), domains=SOURCES, hidden=5)
PARTS = check_parts(2)
PLAN = Plan(9, 42, 21, TASK.modalities, BATCH)
REVERSAL = 0.5
SEED = 10
"""Here both encoders' gradients conflict, and the two modalities take opposite branches."""


class Aligning(Joint):
    """A host with a loss of its own, which teaches no class and reaches the first modality alone."""

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        return super().losses(forward, batch, ctx) | {"size": self.size(forward)}

    @staticmethod
    def size(forward: Forward) -> Tensor:
        return forward.features["m0"].square().mean()

    def supervises(self, loss: str) -> bool:
        return loss != "size"


HOSTED = composed(Aligning, GMP)


class Spy(Context):
    """Keeps the gradients of the last step."""

    seen: dict[str, Tensor]

    def update(self, loss: Tensor) -> None:
        self.seen = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        super().update(loss)


def built(kind: type[Method], **options: Any) -> Method:
    return kind(validated(kind.Options, options, kind.__name__), TASK)


def batch() -> Batch:
    return next(iter(PARTS["train"].batches(BATCH)))


def stepped(kind: type[Method], **options: Any) -> Spy:
    method = built(kind, **options)
    protocol = check_protocol().changed({"reversal": REVERSAL})
    ctx: Spy = begin(method, initialised(method, SEED).train(), protocol, SEED, PARTS["train"], PARTS["val"], kind=Spy)
    method.step(batch(), ctx)
    return ctx


def by_hand(term: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Return features and one loss's gradients in each encoder, by modality and parameter, without the harness."""
    model, given = initialised(built(GMP), SEED).train(), batch()
    features = model.encode(given.inputs)
    assert model.discriminator is not None
    assert given.domains is not None
    loss = {
        "class": functional.cross_entropy(model.classify(features), given.labels),
        "domain": -REVERSAL * functional.cross_entropy(model.discriminator(model.fuse(features)), given.domains),
        "size": features["m0"].square().mean(),
    }[term]
    loss.backward()
    return {name: values.detach() for name, values in features.items()}, {
        m: {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.encoder_parameters(m).items()}
        for m in model.modalities
    }


def vector(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def encoder(ctx: Spy, modality: str) -> Tensor:
    return vector({name: g for name, g in ctx.seen.items() if name.startswith(f"encoders.{modality}.")})


def scales(features: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    given = batch()
    assert given.domains is not None
    return ratios(*confidences(initialised(built(GMP), SEED), features, given.labels, given.domains))


@pytest.mark.parametrize("variant", get_args(Variant))
def test_encoders_get_what_the_equations_make_of_the_two_gradients(variant: Variant) -> None:
    features, own = by_hand("class")
    domain = by_hand("domain")[1]
    rho, sigma, gamma = scales(features)
    assert gamma["m0"] > 1 > gamma["m1"]
    ctx = stepped(GMP, variant=variant)
    for m in TASK.modalities:
        k, p = coefficient(rho[m], 0.5), coefficient(sigma[m], 0.5)
        assert vector(own[m]) @ vector(domain[m]) < 0
        expected = modulate(vector(own[m]), vector(domain[m]), k=k, p=p, gamma=gamma[m], variant=variant)
        torch.testing.assert_close(encoder(ctx, m), expected, rtol=1e-4, atol=1e-6)


def test_heads_and_discriminator_get_the_gradients_of_base_bit_for_bit() -> None:
    ours, theirs = stepped(GMP).seen, stepped(Base).seen
    apart = [name for name in theirs if not name.startswith("encoders")]
    assert {name.partition(".")[0] for name in apart} == {"head", "discriminator"}
    assert all(torch.equal(ours[name], theirs[name]) for name in apart)
    assert ours.keys() == theirs.keys()


def test_where_nothing_is_cut_or_projected_the_step_is_bases() -> None:
    ours, theirs = stepped(GMP, alpha_k=0.0, alpha_p=0.0, variant="igdm_only").seen, stepped(Base).seen
    torch.testing.assert_close(ours, theirs)


def test_another_methods_auxiliary_loss_is_added_as_it_is() -> None:
    auxiliary = by_hand("size")[1]
    alone, hosted = stepped(GMP), stepped(HOSTED)
    for m in TASK.modalities:
        torch.testing.assert_close(encoder(hosted, m), encoder(alone, m) + vector(auxiliary[m]), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(hosted.seen[name], value) for name, value in alone.seen.items() if name.startswith("head"))
    assert vector(auxiliary["m0"]).norm() > 1e-3


@pytest.mark.parametrize(("kind", "backward"), [(GMP, 2), (composed(Joint, GMP), 2), (HOSTED, 3)])
def test_a_backward_per_group_of_losses_is_declared_and_taken(kind: type[Method], backward: int) -> None:
    declared = built(kind).expected_passes(PLAN)
    taken = fit(built(kind), PARTS, check_protocol().changed({"epochs": 1}), 0).passes
    assert (declared.forward, declared.backward) == (taken.forward, taken.backward) == (1, backward)


def test_the_printed_and_the_continuous_coefficient_train_differently() -> None:
    printed, continuous = (stepped(GMP, coefficient=form) for form in ("printed", "continuous"))
    assert any(not torch.equal(encoder(printed, m), encoder(continuous, m)) for m in TASK.modalities)


def test_an_epoch_records_the_ratios_of_figure_5_the_coefficients_and_the_conflicts() -> None:
    run = fit(built(GMP), PARTS, check_protocol().changed({"epochs": 2}), 0)
    notes = run.epochs[-1]["notes"]
    names = ("log rho", "log sigma", "k", "p", "share of conflicts")
    assert set(notes) == {f"{name}, {m}" for name in names for m in TASK.modalities}
    for ratio in ("log rho", "log sigma"):
        assert notes[f"{ratio}, m0"] == pytest.approx(-notes[f"{ratio}, m1"])
    assert all(0 <= notes[f"{name}, {m}"] <= 1 for name in names[2:] for m in TASK.modalities)


def test_a_batch_without_domains_is_refused() -> None:
    method = built(GMP)
    ctx: Context = begin(method, initialised(method, 0).train(), check_protocol(), 0, PARTS["train"], PARTS["val"])
    with pytest.raises(UsageError, match="Found a batch without domains"):
        method.step(replace(batch(), domains=None), ctx)


def test_a_task_without_domains_is_refused() -> None:
    reason = GMP.refuses(GMP.Options(), replace(TASK, domains=()))
    assert reason == "needs at least 2 source domains, found none; name a target domain to leave out"
