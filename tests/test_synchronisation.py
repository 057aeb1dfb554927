"""A step leaves the device alone: no method waits in it for a number, but for those that say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark.conformance_task import check_parts, check_protocol
from benchmark.conformance_trial import Trial
from benchmark.context import Context
from benchmark.data import Batch
from benchmark.registry import METHODS
from benchmark.training import fit

HOST = "the number was drawn or is kept on the CPU: the device is not asked"
EXCEPTIONS = {
    "cmrf": HOST,
    "gradnorm": HOST,
    "ogm_ge": HOST,
    "pcgrad": HOST,
    "greedy": "whether the next steps run with one modality alone depends on the speeds",
    "imcl": "Lambert's W is SciPy's, and one share per modality comes from the min-norm problem",
    "rna_net": "in the first step alone, to refuse features that are normalised",
}
"""Methods in whose steps a number is read, and what for."""
ATEN = torch.ops.aten
READ = {
    ATEN._local_scalar_dense.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN._unique2.default,
    ATEN.bincount.default,
}
"""What `item`, `float`, `bool` and `if` come down to, and what makes a tensor whose size depends on values."""
MASKED = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}
"""What does so where an index is a mask."""
COPIED = {Tensor.tolist, Tensor.numpy, Tensor.cpu}
"""What reads a tensor without an operation where it lies on the CPU already."""


class Operations(TorchDispatchMode):
    """Collects the operations that wait for the device."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in READ or (
            func in MASKED and any(index is not None and index.dtype == torch.bool for index in args[1])
        ):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Collects the calls that copy values from the device."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in COPIED:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def synchronisations(name: str) -> list[str]:
    """Return what waits for the device in the steps of a whole run."""
    found: list[str] = []
    method = Trial(METHODS.load(name), {}).build()
    step = method.step

    def watched(batch: Batch, ctx: Context) -> None:
        with Operations(found), Copies(found):
            step(batch, ctx)

    method.step = watched  # type: ignore[method-assign]
    fit(method, check_parts(2), check_protocol(), 0)
    return found


def test_reading_a_number_is_found_however_it_is_read() -> None:
    found: list[str] = []
    number = torch.ones(1)
    with Operations(found), Copies(found):
        float(number)
        bool(number > 0)
        number.tolist()
        number[number > 0]
    assert len(found) == 4


@pytest.mark.parametrize("name", METHODS.names())
def test_a_step_does_not_wait_for_the_device(name: str) -> None:
    found = synchronisations(name)
    assert bool(found) is (name in EXCEPTIONS), f"{name}: {sorted(set(found))}"


def test_exceptions_are_registered_methods() -> None:
    assert set(EXCEPTIONS) <= set(METHODS.names())
