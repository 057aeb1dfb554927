"""The mean of a model's weights over the steps of a run."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

from benchmark.frozen import keep_still

if TYPE_CHECKING:
    from benchmark.model import MultimodalModel

_averaged = get_swa_multi_avg_fn()


class MovingAverage(nn.Module):
    """The mean of a model's weights over steps, which is a model itself and never trained.

    Its weights are buffers, for no optimiser owns them; with the model that holds it they are saved and restored.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        keep_still(self.model.modules())

    @torch.no_grad()
    def follow(self, model: nn.Module, averaged: int) -> None:
        """Take a model's weights into the mean of `averaged` others; integers are copied."""
        own, new = self.model.state_dict(), model.state_dict()
        weights = [name for name, value in own.items() if value.is_floating_point()]
        _averaged([own[name] for name in weights], [new[name] for name in weights], averaged)
        for name in own.keys() - set(weights):
            own[name].copy_(new[name])
