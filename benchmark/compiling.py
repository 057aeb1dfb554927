"""`torch.compile` for encoders, as a protocol option: what they compute, and what is counted of it, stays the same."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config

if TYPE_CHECKING:
    from benchmark.backbones import Backbone

B = TypeVar("B", bound="Backbone")


KINDS = 64
"""Kinds of input that code is kept for: modality, whole or last batch, training or evaluation, trained or frozen."""


@cache
def compiled(backbone: type[B]) -> type[B]:
    """Return the backbone with its `forward` compiled, the first time an input of a kind comes.

    It is the class that is compiled, not an encoder: a deep copy of one runs on its own weights, names of parameters
    stay what they are, and the hooks that count passes stay outside. What cannot be compiled in one graph, and more
    kinds of input than `KINDS`, raise torch's error instead of falling back to eager code. Gradients of
    gradients have no compiled form: methods that take them fail with torch's message.
    """
    # Methods walk one graph several times, which a backward that overwrites its saved tensors cannot survive.
    functorch_config.donated_buffer = False
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, KINDS)
    forward = torch.compile(backbone.forward, fullgraph=True)
    return type(backbone.__name__, (backbone,), {"forward": forward, "__module__": backbone.__module__})
