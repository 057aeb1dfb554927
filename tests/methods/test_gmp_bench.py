"""GMP as in its first author's benchmark code: ratios of means, auxiliary losses, and what trains on what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from baselines.active_learning import ActiveLearning
from benchmark.conformance_task import BATCH, SOURCES, Widths, check_parts, check_protocol, check_task
from benchmark.context import Context, begin
from benchmark.data import Batch
from benchmark.errors import UsageError
from benchmark.registry import METHODS
from benchmark.training import initialised
from methods.gmp_bench import DomainHeads, GMPBench, ratios_of_means

TASK = replace(check_task(2, Widths.UNEQUAL), domains=SOURCES)
PARTS = check_parts(2)


def f64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Spy(Context):
    seen: dict[str, Tensor]

    def update(self, loss: Tensor) -> None:
        self.seen = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        super().update(loss)


def batch() -> Batch:
    return next(iter(PARTS["train"].batches(BATCH)))


def stepped(**options: float | str) -> Spy:
    method = GMPBench(GMPBench.Options.model_validate(options), TASK)
    model = initialised(method, 0).train()
    heads = model.get_submodule("domain_heads")
    for module in heads.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ctx: Spy = begin(method, model, check_protocol(), 0, PARTS["train"], PARTS["val"], kind=Spy)
    method.step(batch(), ctx)
    return ctx


def test_ratios_are_of_means_with_a_small_number_in_the_denominators() -> None:
    rho, sigma, gamma = ratios_of_means(
        {"v": f64([0.8, 0.6, 0.9, 0.7]), "a": f64([0.5, 0.4, 0.6, 0.375])},
        {"v": f64([0.7, 0.6, 0.8, 0.65]), "a": f64([0.5, 0.55, 0.45, 0.7])},
    )
    found = torch.stack([rho["v"], rho["a"], sigma["v"], sigma["a"], gamma["v"]])
    expected = f64([1.599997, 0.624999, 0.799999, 1.249998, 1.599997 / 0.8])
    torch.testing.assert_close(found[:4], expected[:4], rtol=0, atol=0.51e-6)
    torch.testing.assert_close(found[4], expected[4], rtol=0, atol=5e-6)
    assert rho["v"] * rho["a"] < 1


def test_domain_heads_turn_the_gradient_around_for_the_features_alone() -> None:
    torch.manual_seed(0)
    features = {"v": torch.randn(4, 3, requires_grad=True), "a": torch.randn(4, 2, requires_grad=True)}
    heads = DomainHeads({"v": 3, "a": 2}, 2, 1.0).eval()
    found = []
    for reversal in (0.3, -1.0):
        heads.reversal = reversal
        found.append(torch.autograd.grad(heads(features)["v"][:, 0].sum(), features["v"])[0])
    torch.testing.assert_close(found[0], -0.3 * found[1])


def test_the_fused_loss_is_added_as_it_is_and_trains_the_fused_head_alone() -> None:
    silent = {"unimodal_weight": 0.0, "domain_weight": 0.0}
    whole, fused = stepped().seen, stepped(**silent).seen
    assert torch.equal(whole["head.weight"], fused["head.weight"])
    joint = METHODS.load("joint")
    method = joint(joint.Options(), TASK)
    model = initialised(method, 0).train()
    ctx: Spy = begin(method, model, check_protocol(), 0, PARTS["train"], PARTS["val"], kind=Spy)
    method.step(batch(), ctx)
    for name, value in ctx.seen.items():
        torch.testing.assert_close(fused[name], value)


def test_projections_and_discriminator_train() -> None:
    seen = stepped().seen
    assert all(value.any() for name, value in seen.items() if name.startswith("domain_heads.shared.3"))
    assert {"domain_heads.projections.m0.0.weight", "domain_heads.projections.m1.0.weight"} <= seen.keys()


def test_the_unimodal_classifier_is_cut_with_its_encoder() -> None:
    plain, cut = stepped(variant="igdm_only", alpha_k=0.0).seen, stepped(variant="igdm_only", alpha_k=1.0).seen
    factors = [float((cut[name] / plain[name]).mean()) for name in plain if name.startswith("unimodal_heads.")]
    strong = [factor for factor in factors if factor < 0.9]
    assert len(strong) == len(factors) / 2
    assert all(factor == pytest.approx(1) for factor in factors if factor >= 0.9)


def test_it_is_a_method_of_its_own_and_wraps_no_other() -> None:
    assert not GMPBench.adversarial
    with pytest.raises(UsageError, match=r"changes build, losses; only what modulates"):
        METHODS.load(f"{ActiveLearning.__module__.rpartition('.')[2]}+gmp_bench")
