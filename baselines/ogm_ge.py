"""OGM-GE: encoder gradients of stronger modalities shrunk on the fly, Gaussian noise added to all of them.

Peng, Wei, Deng, Wang, Hu: "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022;
equation numbers are the paper's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, option, reading, summed_confidences

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.task import Task

Coefficient = Literal["printed", "continuous"]
Noise = Literal["raw", "scaled", "none"]
Tensors = Literal["matrices", "4d"]


def confidences(logits: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return each modality's score s `(M,)`: true-class probabilities from logits `(B, C)`, summed (Eq. 8)."""
    return summed_confidences(logits, labels).double()


def discrepancies(scores: Tensor) -> Tensor:
    """Return rho_m = s_m / the smallest other score of scores `(M,)`; s_m / s_n with two modalities (Eq. 9)."""
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    smallest = scores.expand(len(scores), -1).masked_fill(own, math.inf).amin(1)
    return scores / smallest.clamp_min(sys.float_info.min)


def coefficients(scores: Tensor, alpha: float, coefficient: Coefficient = "printed") -> Tensor:
    """Return k_m `(M,)`: 1 for the weakest modality, 1 - tanh(alpha rho_m) for all others (Eq. 10).

    Among equally weak modalities the last counts as the weakest, as in the official code. "continuous" has
    rho_m - 1 in place of rho_m.
    """
    places = torch.arange(len(scores), device=scores.device)
    weakest = torch.where(scores == scores.min(), places, -1).max()
    offset = 1 if coefficient == "continuous" else 0
    return torch.where(places == weakest, 1.0, 1 - torch.tanh(alpha * (discrepancies(scores) - offset)))


def selected(gradients: Mapping[str, Tensor], tensors: Tensors = "matrices") -> dict[str, Tensor]:
    """Return the gradients that are modulated, by name: of two and more dimensions, or of exactly four."""
    return {n: g for n, g in gradients.items() if (g.ndim == 4 if tensors == "4d" else g.ndim >= 2)}


def deviation(gradient: Tensor) -> Tensor:
    """Return the standard deviation, 0-d, over all entries of a gradient of any shape; 0 for a single entry.

    From the sums of entries and squares, five times as fast as `Tensor.std`, and as exact where the mean is no larger
    than the deviation. One below a thousandth of the mean is lost in rounding.
    """
    entries, count = gradient.reshape(-1), gradient.numel()
    spread = torch.dot(entries, entries) - entries.sum().square() / count
    return (spread.clamp_min(0) / max(1, count - 1)).sqrt()


@torch.no_grad()
def modulate_(
    gradient: Tensor, coefficient: float | Tensor, *, noise: Noise = "raw", generator: torch.Generator | None = None
) -> Tensor:
    """Scale a gradient of any shape in place by a number or 0-d tensor, add noise of its deviation (Algorithm 1).

    The deviation is the raw gradient's, or with "scaled" the scaled one's; "none" adds nothing. `generator`
    must live on the gradient's device.
    """
    if noise == "none":
        return gradient.mul_(coefficient)
    # One scalar per tensor, over all entries.
    width = deviation(gradient)
    if noise == "scaled":
        width = coefficient * width
    draw = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype, device=gradient.device)
    return gradient.mul_(coefficient).addcmul_(draw, width + 1e-8)


class OGMGE(Method):
    """Shrinks the encoder gradients of stronger modalities and adds noise to those of all."""

    info = MethodInfo(
        title="OGM-GE",
        paper="Peng, Wei, Deng, Wang, Hu: Balanced Multimodal Learning via On-the-fly Gradient Modulation",
        venue="CVPR 2022",
        arxiv="2203.15332",
        origin="GeWu-Lab/OGM-GE_CVPR2022 @ 343dc1d95c9bda88f105c0da8d24f185e0e98b54",
        licence="contradictory: MIT in LICENSE, GPL v3 in the README",
        category="imbalance",
        interventions=frozenset({Intervention.PARAMETER_GRADIENT}),
        changes=frozenset({"encoders"}),
    )
    noop: ClassVar[Mapping[str, object]] = {"alpha": 0.0, "noise": "none"}

    # README's tips (alpha) and the script's window.
    official: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "cremad": {"alpha": 0.8, "start": 0.0, "end": 0.5},
        "vggsound": {"alpha": 0.1, "start": 0.0, "end": 0.5},
    }

    class Options(MethodOptions):
        """Strength, window and readings."""

        alpha: float = option(
            0.8, "Strength of the modulation. Official advice: 0.8 for CREMA-D, 0.1 for VGGSound.", ge=0
        )
        start: float = option(0.0, "First modulated epoch, as a fraction of the run.", ge=0, le=1)
        end: float = option(
            0.5,
            "Last modulated epoch, as a fraction of the run. Official: epochs 0 to 50 of 100.",
            ge=0,
            le=1,
        )
        coefficient: Coefficient = reading(
            "printed",
            "Eq. 10, 1 - tanh(alpha rho), jumps at 1. `continuous`: 1 - tanh(alpha (rho - 1)), the first "
            "public code. Default `printed`: the paper, and the code since May 2022.",
        )
        noise: Noise = reading(
            "raw",
            "Deviation of the noise: of the `raw` gradient, or of the `scaled` one as in early code, which "
            "leaves the stronger modality less; `none` is OGM. Default `raw`: Algorithm 1 and current code.",
        )
        tensors: Tensors = reading(
            "matrices",
            "Encoder tensors that are modulated. `4d`: the official filter for convolution kernels, which "
            "keeps one tensor of a ViT. Default `matrices`, two and more dimensions: the same tensors in a "
            "ResNet, and all weights elsewhere.",
        )

        @model_validator(mode="after")
        def _window(self) -> Self:
            if self.start > self.end:
                raise ValueError(f"start={self.start} lies after end={self.end}; the window would be empty")
            return self

    options: Options

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Return which encoders `tensors=4d` would leave untouched."""
        if options.tensors == "4d":
            with torch.device("meta"):
                encoders = task.encoders()
            idle = [m for m, encoder in encoders.items() if all(p.ndim != 4 for p in encoder.parameters())]
            if idle:
                return f"tensors=4d finds no 4-D kernel in encoder {', '.join(idle)}; use tensors=matrices"
        return super().refuses(options, task)

    def modulate_parameters(
        self, gradients: dict[str, dict[str, Tensor]], forward: Forward, batch: Batch, ctx: Context
    ) -> None:
        """Scale and perturb encoder gradients while the epoch lies in the window, both ends included."""
        options = self.options
        if not options.start <= ctx.epoch / ctx.epochs <= options.end:
            return
        with torch.no_grad():
            scores = confidences(forward.unimodal, batch.labels)
        # A stream on the gradients' own device: drawing there is what makes the noise affordable on a GPU.
        seed = int(torch.randint(2**62, (), generator=ctx.generator))
        generator = torch.Generator(batch.labels.device).manual_seed(seed)
        factors = coefficients(scores, options.alpha, options.coefficient)
        for name, factor in zip(forward.unimodal, factors, strict=True):
            for gradient in selected(gradients[name], options.tensors).values():
                modulate_(gradient, factor, noise=options.noise, generator=generator)
