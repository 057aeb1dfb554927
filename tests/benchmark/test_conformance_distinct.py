"""No two registered methods are one method under two names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import combinations

import torch
from torch import Tensor

from baselines.joint import Joint
from benchmark.conformance_trial import Trial
from benchmark.method import Method
from benchmark.model import parameter_group
from benchmark.registry import METHODS

SEEDS = 4
"""Some methods act only where gradients conflict: any seed may tell two of them apart."""


Weights = Callable[[int], dict[str, Tensor]]
"""The encoders' weights, which all methods share, after a run on the check task with a seed."""


def trained(method: type[Method], seed: int) -> dict[str, Tensor]:
    weights = Trial(method, {}).fit(seed=seed).model.named_parameters()
    return {name: value.detach() for name, value in weights if parameter_group(name) == "encoders"}


@cache
def registered(name: str, seed: int) -> dict[str, Tensor]:
    return trained(METHODS.load(name), seed)


def same(first: Weights, second: Weights) -> bool:
    """Return whether no seed tells two methods apart by more than rounding."""
    return all(
        a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-5) for name in a)
        for a, b in ((first(seed), second(seed)) for seed in range(SEEDS))
    )


def test_no_two_methods_train_the_same_encoders() -> None:
    methods = {name: partial(registered, name) for name in METHODS.names()}
    assert [pair for pair in combinations(methods, 2) if same(methods[pair[0]], methods[pair[1]])] == []


def test_a_method_that_differs_by_rounding_alone_is_found() -> None:
    class Rounded(Joint):
        def modulate_features(self, gradients: dict[str, Tensor], *_: object) -> dict[str, Tensor]:
            return {name: gradient * (1 + 1e-6) for name, gradient in gradients.items()}

    assert same(partial(trained, Joint), partial(trained, Rounded))
