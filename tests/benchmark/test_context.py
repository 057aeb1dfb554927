"""Encoder gradients are the caller's, to change in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.joint import Joint
from benchmark.task import Task
from tests.baselines.scenes import context, noisy_part


class TwiceBiased(nn.Module):
    """Adds two parameters, for which autograd has one and the same gradient, and holds one that nothing reaches."""

    width = 3

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.idle = (nn.Parameter(torch.ones(3)) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + (self.one + self.other)


def test_a_changed_encoder_gradient_is_nobody_elses_and_grad_stays_as_it_was() -> None:
    task = Task({"a": (3,), "b": (3,)}, 3, 1, lambda _name, _shape: TwiceBiased())
    method = Joint(Joint.Options(), task)
    part = noisy_part("ab", 6)
    ctx = context(method, method.build(), part, 6)
    before = torch.full((3,), 7.0)
    kept = ctx.model.encoder_parameters("a")["one"]
    kept.grad = before

    forward = ctx.forward(next(part.batches(6)))
    found = ctx.encoder_gradients(forward, {"a": torch.ones(6, 3)})["a"]
    found["one"].zero_()

    assert found["other"].tolist() == [6.0, 6.0, 6.0]
    assert found["idle"].tolist() == [0.0, 0.0, 0.0]
    assert kept.grad is before
    assert before.tolist() == [7.0, 7.0, 7.0]
