"""Heads that several methods add to a model, and the dropout that heads of some backbones begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from benchmark.context import Context
    from benchmark.model import MultimodalModel


Shares = dict[str, Annotated[float, Field(ge=0, lt=1)]]
"""Type of an option: a share below 1 by modality; those not named have 0."""


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that trains on a batch of one sample, too: without a variance, by its running statistics.

    These stay what they were.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Module's callers may use
        """Map `(B, d)` to `(B, d)`."""
        if self.training and len(input) == 1:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


def projection(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """Build a map with two hidden layers, each batch-normalised, from `(B, width)` to `(B, outputs)`."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        BatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def applied(head: nn.Module, values: Tensor, ctx: Context) -> Tensor:
    """Return a head's outputs, computed in the run's precision, in that of `values`."""
    with ctx.run.autocast():
        outputs: Tensor = head(values)
    return outputs.to(values.dtype)


def _dropped(share: float, encoder: nn.Module, _: object, features: Tensor) -> Tensor:
    return functional.dropout(features, share, encoder.training)


def drop_features(model: MultimodalModel, shares: Mapping[str, float]) -> None:
    """Have the encoders of the named modalities drop a share of their features `(B, d_m)` in training."""
    for name, share in shares.items():
        model.encoders[name].register_forward_hook(partial(_dropped, share))


def misnamed(named: Iterable[str], modalities: Iterable[str]) -> str | None:
    """Return which of the names are of no modality, and what would work; None when all are."""
    unknown = sorted(set(named).difference(modalities))
    return f"has no modality {', '.join(unknown)}; use {', '.join(modalities)}" if unknown else None
