"""What is recorded while training, for every method alike: the balance / non-conflict plane and encoder passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.gradients import NEGLIGIBLE_NORM
from benchmark.method import Passes


def balance_factor(energies: Mapping[Any, float]) -> float:
    """Return 8 w_i w_j - 1 averaged over modality pairs, w_i = E_i / (E_i + E_j) (RGM Eq. 5); 1 where both are 0."""
    factors = []
    for first, second in combinations(energies.values(), 2):
        total = first + second
        share = first / total if total > 0 else 0.5
        factors.append(8 * share * (1 - share) - 1)
    return sum(factors) / len(factors) if factors else 1.0


POINTS = 8
"""Steps per epoch whose place on the plane is kept."""


class Diagnostics:
    """Cumulative gradient energy per modality (RGM Eq. 3) and the per-step cosine of feature gradients (RGM Eq. 6).

    Energies use the raw gradients of the trained loss, before any method rewrites them.
    """

    def __init__(self, modalities: tuple[str, ...], device: torch.device) -> None:
        self.modalities = modalities
        self._energy = torch.zeros(len(modalities), dtype=torch.float64, device=device)
        self._work: list[Tensor] = []
        self._cosines: list[Tensor | None] = []

    @torch.no_grad()
    def observe(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """Record one step's raw feature gradients `(B, d_m)`; the cosine needs two modalities of equal width."""
        norms = {name: torch.linalg.vector_norm(gradient, dim=1) for name, gradient in gradients.items()}
        idle = self._energy.new_zeros((), dtype=next(iter(norms.values())).dtype)
        squares = [torch.dot(norms[name], norms[name]) if name in norms else idle for name in self.modalities]
        self._work.append(torch.stack(squares) * lr**2)
        pairs = [(a, b) for a, b in combinations(gradients, 2) if gradients[a].shape == gradients[b].shape]
        cosines = [
            (gradients[a] * gradients[b]).sum(1).div_((norms[a] * norms[b]).clamp_min_(NEGLIGIBLE_NORM**2)).mean()
            for a, b in pairs
        ]
        mean = cosines[0] if len(cosines) == 1 else torch.stack(cosines).mean() if cosines else None
        self._cosines.append(mean)

    def end_epoch(self) -> dict[str, Any]:
        """Return energies, balance factor, the distribution of the epoch's per-step cosines, and `plane`.

        `plane` holds [share of the epoch, balance factor, cosine] after some of its steps, evenly spaced; a cosine is
        None where widths differ.
        """
        energies = torch.stack([self._energy, *self._work]).double().cumsum(0)
        self._energy = energies[-1]
        measured = [cosine for cosine in self._cosines if cosine is not None]
        cosines = torch.stack(measured).double().cpu() if measured else torch.empty(0)
        found = dict(zip((at for at, c in enumerate(self._cosines) if c is not None), cosines.tolist(), strict=True))
        count = len(self._cosines)
        chosen = _evenly_spaced(count, POINTS)
        balance = [balance_factor(dict(enumerate(step))) for step in energies[1:][chosen].tolist()]
        self._work.clear()
        self._cosines.clear()
        return {
            "energy": self.state_dict(),
            "balance_factor": balance_factor(self.state_dict()),
            "cosine": _distribution(cosines) if measured else None,
            "plane": [[(at + 1) / count, w, found.get(at)] for at, w in zip(chosen, balance, strict=True)],
        }

    def state_dict(self) -> dict[str, float]:
        """Return the energies."""
        return dict(zip(self.modalities, self._energy.tolist(), strict=True))

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the energies."""
        for place, name in enumerate(self.modalities):
            self._energy[place] = state[name]


def _distribution(steps: Tensor) -> dict[str, float]:
    low, middle, high = torch.quantile(steps, steps.new_tensor([0.1, 0.5, 0.9])).tolist()
    return {"mean": steps.mean().item(), "q10": low, "q50": middle, "q90": high}


def _evenly_spaced(count: int, most: int) -> list[int]:
    """Return at most `most` positions below `count`, the last one among them."""
    chosen = min(count, most)
    return [place * count // chosen - 1 for place in range(1, chosen + 1)]


class PassCounter:
    """Counts samples through each encoder, forwards and backwards, by hooks that deep copies of an encoder keep."""

    def __init__(self, modalities: tuple[str, ...]) -> None:
        self.forward = dict.fromkeys(modalities, 0)
        self.backward = dict.fromkeys(modalities, 0)
        self.paused = False
        # One function per modality, shared by deep copies: it tells an encoder that is watched already.
        self._hooks = {name: self._hook(name) for name in modalities}

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Return a context whose passes are not counted."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def watch(self, encoders: nn.ModuleDict) -> None:
        """Count every pass through these encoders from now on; those that are counted already stay so."""
        for name, encoder in encoders.items():
            if self._hooks[name] not in encoder._forward_hooks.values():
                encoder.register_forward_hook(self._hooks[name])

    def _hook(self, name: str) -> Any:
        # Functions are shared, not copied, by deepcopy: clones of an encoder count on the same counter.
        def on_backward(gradient: Tensor) -> None:
            self.backward[name] += len(gradient)

        def on_forward(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not self.paused:
                self.forward[name] += len(output)
                if output.requires_grad:
                    output.register_hook(on_backward)

        return on_forward

    def passes(self, samples: int, epochs: int) -> Passes:
        """Return passes per training sample and epoch, averaged over modalities."""
        total = samples * epochs * len(self.forward)
        return Passes(sum(self.forward.values()) / total, sum(self.backward.values()) / total)

    def state_dict(self) -> dict[str, dict[str, int]]:
        """Return the counts."""
        return {"forward": dict(self.forward), "backward": dict(self.backward)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, int]]) -> None:
        """Restore the counts."""
        self.forward.update(state["forward"])
        self.backward.update(state["backward"])
