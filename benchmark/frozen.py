"""Weights that are part of a model and that nobody trains."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def keep_still(modules: Iterable[nn.Module]) -> None:
    """Turn the modules' own parameters into buffers: saved and moved with the model, and owned by no optimiser."""
    for module in modules:
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
