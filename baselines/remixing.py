"""Data Remixing: each sample trains only the modality that is least sure of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from benchmark.data import Batch
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, Passes, Plan, option, reading

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.model import MultimodalModel

Item = TypeVar("Item")


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """Return KL(softmax(logits) || uniform) `(B,)` in bits for logits `(B, C)`: log2 C minus the entropy.

    Probabilities are clipped to [1e-9, 1] and not normalised again, as in the official code.
    """
    probabilities = logits.softmax(dim=1).clamp(1e-9, 1.0)
    return (probabilities * torch.log2(probabilities * logits.shape[1])).sum(dim=1)


def allocate(logits: Mapping[str, Tensor]) -> Tensor:
    """Return per sample the position `(B,)` of the modality whose unimodal prediction is closest to uniform.

    `logits[m]` is `(B, C)`. Of equally close modalities the last one wins (with audio and video: video).
    """
    divergences = torch.stack([divergence_from_uniform(values) for values in logits.values()])
    return len(divergences) - 1 - divergences.flip(0).argmin(dim=0)


def interleave(streams: Sequence[Iterator[Item]]) -> Iterator[Item]:
    """Yield one item of each stream in turn until all are exhausted; a stream that ends early drops out."""
    for turn in zip_longest(*streams):
        yield from (item for item in turn if item is not None)


def warmup_epochs(epochs: int, fraction: float) -> int:
    """Return the length of the joint warm-up, rounded half up; at least one unless the fraction is 0."""
    return max(1, int(fraction * epochs + 0.5)) if fraction > 0 else 0


@dataclass(frozen=True, kw_only=True)
class SpecificBatch(Batch):
    """A batch whose samples train one modality alone."""

    modality: str


class Remixing(Method):
    """After a joint warm-up each epoch gives every sample to one modality, and a batch trains one modality.

    More than two modalities are a direct generalisation: as many subsets and as many blocks of batches, the
    last modality's first (video before audio in the official code).
    """

    info = MethodInfo(
        title="Data Remixing",
        paper="Ma, Chen, Deng: Improving Multimodal Learning Balance and Sufficiency through Data Remixing",
        venue="ICML 2025",
        arxiv="2506.11550",
        origin="MatthewMaxy/Remix_ICML2025 @ 80898aa0ad8077af535e7ade4b4583525592956f",
        licence="MIT",
        category="imbalance",
        interventions=frozenset(
            {Intervention.DATA, Intervention.FORWARD, Intervention.LOSS, Intervention.EXTRA_PASSES}
        ),
        changes=frozenset({"encoders", "fusion", "head"}),
        passes=Passes(forward=1 + 50 / 60),
    )
    noop: ClassVar[Mapping[str, object] | None] = {"warmup": 1.0, "warmup_weight": 0.0}

    # Script in the repository.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "cremad": {"warmup": 10 / 60, "warmup_weight": 0.5, "specific_weight": 1.0},
    }

    class Options(MethodOptions):
        """Warm-up, weights of the unimodal losses, and readings."""

        warmup: float = option(10 / 60, "fraction of the run trained jointly first (officially 10 of 60)", ge=0, le=1)
        warmup_weight: float = option(0.5, "weight of each unimodal loss in the warm-up (alpha, beta)", ge=0)
        specific_weight: float = option(1.0, "weight of the unimodal loss in single-modality batches (gamma)", ge=0)
        mask: Literal["feature", "input"] = reading(
            "feature",
            "feature: the hidden modality's features are zeros, as in the code that made the numbers; its "
            "encoder learns nothing. input: its encoder runs and trains on zeros, as in the paper's figure.",
        )
        freeze_masked: bool = reading(
            False,
            "False: the hidden encoder runs and gets gradients that are zero but present, as in the code, so "
            "that momentum, weight decay and batch statistics still move it. True: it is not run and stays "
            "untouched, as the paper claims.",
        )
        order: Literal["blocks", "interleave"] = reading(
            "blocks",
            "blocks: all batches of the last modality, then those of the one before, as in the code. "
            "interleave: modalities take turns, as in the paper's figure.",
        )
        prediction: Literal["heads", "masking"] = reading(
            "heads",
            "heads: confidence is read from the unimodal heads, as in the code. masking: from the fused head "
            "with the other modalities' features set to zero, which the paper compares.",
        )

        @model_validator(mode="after")
        def _masked_encoder_cannot_be_frozen_and_run(self) -> Remixing.Options:
            if self.freeze_masked and self.mask == "input":
                raise ValueError("freeze_masked leaves the hidden encoder out, mask=input runs it: choose one")
            return self

    allocation: Tensor | None = None
    """Position `(N,)` of the modality that each training sample trains in this epoch; None in the warm-up."""

    def build(self) -> MultimodalModel:
        """Build the model with one linear head per modality."""
        return self.task.build_model(unimodal_heads=True)

    def start_epoch(self, ctx: Context) -> None:
        """Give every training sample, seen without augmentation, to its least confident modality."""
        self.allocation = None
        if ctx.epoch >= warmup_epochs(ctx.epochs, self.options.warmup):
            self.allocation = torch.cat([self._allocate(seen) for _, seen in ctx.evaluate(ctx.train)])
            for position, modality in enumerate(ctx.model.modalities):
                ctx.note(f"share of samples, {modality}", (self.allocation == position).double().mean())

    def _allocate(self, forward: Forward) -> Tensor:
        alone = forward.unimodal
        if self.options.prediction == "masking":
            alone = {m: forward.only(m).logits for m in forward.features}
        return allocate(alone)

    def batches(self, ctx: Context) -> Iterable[Batch]:
        """Return joint batches in the warm-up, single-modality batches after it."""
        if self.allocation is None:
            return ctx.batches()
        streams = [self._stream(ctx, m) for m in reversed(ctx.model.modalities)]
        return interleave(streams) if self.options.order == "interleave" else chain(*streams)

    def _stream(self, ctx: Context, modality: str) -> Iterator[SpecificBatch]:
        assert self.allocation is not None
        chosen = (self.allocation == ctx.model.modalities.index(modality)).nonzero().squeeze(1)
        for batch in ctx.batches(indices=chosen) if len(chosen) else ():
            shown = {
                m: torch.zeros_like(values) if self.options.mask == "input" and m != modality else values
                for m, values in batch.inputs.items()
            }
            yield SpecificBatch(shown, batch.labels, batch.index, batch.domains, modality=modality)

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the fused loss and, per modality that the batch trains, the loss of its own head."""
        if not isinstance(batch, SpecificBatch):
            result = super().losses(forward, batch, ctx)
            weight, alone = self.options.warmup_weight, dict(forward.unimodal)
        else:
            shown = forward.only(batch.modality)
            fused = forward if self.options.mask == "input" else shown
            result = super().losses(fused, batch, ctx)
            weight, alone = self.options.specific_weight, shown.unimodal
        if weight > 0:
            result |= {m: weight * functional.cross_entropy(logits, batch.labels) for m, logits in alone.items()}
        return result

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch; an encoder that its modality hides is run unless it is frozen."""
        only = (batch.modality,) if self.options.freeze_masked and isinstance(batch, SpecificBatch) else None
        forward = ctx.forward(batch, only)
        loss = torch.stack(list(self.losses(forward, batch, ctx).values())).sum()
        # A feature that no loss has read gets zeros, not nothing: the optimiser still steps its encoder.
        ctx.descend(forward, loss)

    def expected_passes(self, plan: Plan) -> Passes:
        """One more forward pass in every epoch after the warm-up; frozen encoders are spared theirs."""
        remixed = 1 - warmup_epochs(plan.epochs, self.options.warmup) / plan.epochs
        run = 1 - remixed + remixed / (len(plan.modalities) if self.options.freeze_masked else 1)
        return Passes(forward=run + remixed, backward=run)
