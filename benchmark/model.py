"""The one model of the suite: encoders -> features -> fusion -> head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.fusion import Concat, Fusion


@dataclass(frozen=True)
class Prediction:
    """What a method answers for a batch: logits `(B, C)` of all modalities, of each alone, and without each."""

    logits: Tensor
    unimodal: dict[str, Tensor]
    missing: dict[str, Tensor]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and back into the one it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Reversal(torch.autograd.Function):
    """The identity, whose gradient is turned around and scaled."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def reverse(values: Tensor, weight: float) -> Tensor:
    """Return `values`, whose gradient is multiplied by `-weight` on its way back."""
    result: Tensor = _Reversal.apply(values, weight)  # type: ignore[no-untyped-call]
    return result


def perceptron(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """Build a map with one hidden layer and ReLU."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def output_layer(head: nn.Module) -> nn.Linear:
    """Return the layer of a head that gives its logits: the head itself, or its last layer."""
    last = head[-1] if isinstance(head, nn.Sequential) else head
    assert isinstance(last, nn.Linear)
    return last


class MultimodalModel(nn.Module):
    """Any number of modalities with unequal widths, one fusion, one head.

    `encoders` map a batch of their modality to features `(B, d_m)` and state d_m as `width`. The head is linear unless
    the task gives it a hidden layer. `discriminator`, where there is one, tells the domain from the fused vector.
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], fusion: type[Fusion], classes: int, unimodal_heads: bool = False
    ) -> None:
        super().__init__()
        self.modalities = tuple(encoders)
        self.widths = {name: int(encoder.width) for name, encoder in encoders.items()}  # type: ignore[arg-type]
        self.classes = classes
        self.encoders = nn.ModuleDict(dict(encoders))
        self.fusion = fusion(self.widths)
        self.head = nn.Linear(self.fusion.width, classes)
        self.discriminator: nn.Module | None = None
        # Last, so that methods with and without them share every earlier draw of the initialisation.
        self.unimodal_heads = nn.ModuleDict(
            {name: nn.Linear(width, classes) for name, width in self.widths.items()} if unimodal_heads else {}
        )

    def encode(self, inputs: Mapping[str, Tensor], only: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the features `(B, d_m)` of all modalities, or of those named in `only`."""
        return {name: self.encoders[name](inputs[name]) for name in (self.modalities if only is None else only)}

    def completed(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `features` with zeros `(B, d_m)` for every modality that is not in it."""
        some = next(iter(features.values()))
        return {
            name: features[name] if name in features else some.new_zeros(len(some), width)
            for name, width in self.widths.items()
        }

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the fused vector `(B, D)`; a modality missing from `features` counts as zeros."""
        fused: Tensor = self.fusion(self.completed(features))
        return fused

    def classify(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the fused logits `(B, C)`; a modality missing from `features` counts as zeros."""
        logits: Tensor = self.head(self.fuse(features))
        return logits

    def unimodal_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return logits `(B, C)` of each modality in `features` alone.

        From its own head where the model has one; from its slice of the fused head, W_m part_m + b / M, where that is
        linear and parts are additive (these sum to the fused logits, OGM-GE Eq. 8); else from the fused head with the
        other modalities zeroed.
        """
        if self.unimodal_heads:
            return {name: self.unimodal_heads[name](value) for name, value in features.items()}
        if not (self.fusion.additive and isinstance(self.head, nn.Linear)):
            return {name: self.classify({name: value}) for name, value in features.items()}
        share = self.head.bias / len(self.modalities)
        parts = self.fusion.parts(self.completed(features))
        return {
            name: functional.linear(parts[name], self.head.weight[:, self.fusion.slices[name]], share)
            for name in features
        }

    def domain_logits(self, features: Mapping[str, Tensor], reversal: float = 0.0) -> Tensor:
        """Return the discriminator's logits `(B, domains)`; a modality missing from `features` counts as zeros.

        What comes before the discriminator receives `-reversal` times the gradient.
        """
        assert self.discriminator is not None, "the model was built without a discriminator"
        logits: Tensor = self.discriminator(reverse(self.fusion(self.completed(features)), reversal))
        return logits

    @contextlib.contextmanager
    def heads_in_evaluation(self) -> Iterator[None]:
        """Switch everything but the encoders to evaluation mode for a while."""
        heads = [child for name, child in self.named_children() if name != "encoders"]
        training = [module for head in heads for module in head.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @property
    def output(self) -> nn.Linear:
        """The layer that gives the fused logits: the head, or its last layer."""
        return output_layer(self.head)

    def answer(self, features: Mapping[str, Tensor]) -> Prediction:
        """Return the logits `(B, C)` of all features `(B, d_m)`, of each alone, and of all but each.

        A missing modality counts as zeros; a model of one modality has nothing left without it.
        """
        others = {name: {m: z for m, z in features.items() if m != name} for name in features}
        return Prediction(
            self.classify(features),
            self.unimodal_logits(features),
            {name: self.classify(rest) for name, rest in others.items() if rest},
        )

    def predict(self, inputs: Mapping[str, Tensor]) -> Prediction:
        """Encode all modalities and answer."""
        return self.answer(self.encode(inputs))

    def encoder_parameters(self, modality: str) -> dict[str, nn.Parameter]:
        """Return the named parameters of one modality's encoder."""
        return dict(self.encoders[modality].named_parameters())

    def parameters_under(self, *prefixes: str) -> dict[str, nn.Parameter]:
        """Return the parameters whose name starts with one of the prefixes, such as `head.`."""
        return {name: value for name, value in self.named_parameters() if name.startswith(prefixes)}


class SharedHeadModel(MultimodalModel):
    """Late fusion: every modality passes one head of the features' width; the task's fusion is not used.

    What becomes of the logits is left to `classify` of subclasses. Needs encoders of equal width.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], _: type[Fusion], classes: int, *_more: bool) -> None:
        super().__init__(encoders, Concat, classes)
        self.head = self.shared_head(max(self.widths.values()), classes)  # type: ignore[assignment]  # any module

    @staticmethod
    def shared_head(width: int, classes: int) -> nn.Module:
        """Build the head, linear by default, that maps features `(B, width)` to logits `(B, C)`."""
        return nn.Linear(width, classes)

    def unimodal_logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the shared head's logits `(B, C)` of each modality in `features`."""
        return {name: self.head(values) for name, values in features.items()}


def parameter_group(name: str) -> str:
    """Return "encoders", "fusion" or "head" for a parameter name of `MultimodalModel` (extra heads count as head)."""
    top = name.partition(".")[0]
    return top if top in ("encoders", "fusion") else "head"


@torch.no_grad()
def same_parameters(a: nn.Module, b: nn.Module) -> bool:
    """Return whether two models of one architecture have bit-identical parameters and buffers."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
