"""What stands in for what the peers take for granted: a CUDA device, and parts of their own code that are not there.

Nothing of it is timed but where it is named: on a machine without CUDA, `on_cpu` makes a device `cuda` mean the CPU.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn


def definitions(file: Path) -> dict[str, Any]:
    """Return what a script imports and defines, without running the rest of it: the paths in that are its author's."""
    kept = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, kept)]
    names: dict[str, Any] = {"__name__": file.stem}
    exec(compile(tree, file, "exec"), names)
    return names


class OneProcess(nn.Module):
    """`DataParallel` over no device at all: the module itself, once, and what it is given."""

    def __init__(self, module: nn.Module, device_ids: Sequence[int] | None = None) -> None:
        super().__init__()
        self.module, self.device_ids, self.output_device = module, device_ids, None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Return what the module returns."""
        return self.module(*inputs, **options)

    def replicate(self, module: nn.Module, _devices: object) -> list[nn.Module]:
        """Return the module as the only replica."""
        return [module]

    def scatter(self, inputs: Any, options: Mapping[str, Any], _devices: object) -> tuple[list[Any], list[Any]]:
        """Return the inputs and options of the only replica."""
        return [inputs], [options]

    def parallel_apply(self, replicas: Sequence[Any], inputs: Sequence[Any], options: Sequence[Any]) -> list[Any]:
        """Return what every replica returns."""
        return [call(given, **own) for call, given, own in zip(replicas, inputs, options, strict=True)]

    def gather(self, results: Sequence[Any], _device: object) -> Any:
        """Return the only result."""
        (result,) = results
        return result


def on_cpu() -> None:
    """Let torch put on the CPU what it is asked to put on a CUDA device, and lightning what it is to put on a GPU."""

    def here(given: Any) -> Any:
        cuda = isinstance(given, str | torch.device) and str(given).startswith("cuda")
        return torch.device("cpu") if cuda else given

    def redirected(move: Callable[..., Any]) -> Callable[..., Any]:
        def moved(self: Any, *places: Any, **named: Any) -> Any:
            return move(self, *map(here, places), **{name: here(place) for name, place in named.items()})

        return moved

    def stay(self: Any, *_places: Any, **_named: Any) -> Any:
        return self

    for kind in (nn.Module, torch.Tensor):
        _replace(kind, cuda=stay, to=redirected(kind.to))
    for module in (nn, nn.parallel):
        _replace(module, DataParallel=OneProcess)


def fabric_on_cpu() -> None:
    """Let lightning's `Fabric` be one on the CPU, whatever device and strategy it is asked for."""
    fabric = importlib.import_module("lightning.fabric")
    real = fabric.Fabric

    def on_this_machine(*, loggers: Any, precision: Any, **_places: Any) -> Any:
        return real(accelerator="cpu", devices=1, precision=precision, loggers=loggers)

    _replace(fabric, Fabric=on_this_machine)


def complete_balancemm() -> None:
    """Give BalanceBenchmark the two names that its commit of February 2025 uses and does not define.

    One of its trainers imports `models.avclassify_model`, a package that is `balancemm.models`, and its model calls a
    ResNet's front end `resnet` that it defines as `resnet_process`. Without them its command ends before training.
    """
    models = importlib.import_module("balancemm.models")
    classifier = importlib.import_module("balancemm.models.avclassify_model")
    sys.modules.setdefault("models", models)
    sys.modules.setdefault("models.avclassify_model", classifier)
    base = classifier.BaseClassifierModel
    if not hasattr(base, "resnet"):
        _replace(base, resnet=base.resnet_process)


def _replace(owner: type | ModuleType, **values: Any) -> None:
    for name, value in values.items():
        setattr(owner, name, value)
