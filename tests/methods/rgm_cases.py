"""What the tests of RGM share: single vectors as batches of one, and random gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.rgm import (
    Orthogonalisation,
    modulate,
    orthogonal_step,
)

FORMS: tuple[Orthogonalisation, ...] = ("consistent", "printed", "exact")


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, expected: object, digits: int = 6) -> None:
    torch.testing.assert_close(found, f64(expected), rtol=0, atol=0.51 * 10**-digits)


def steps(g_i: Tensor, g_j: Tensor, share: Tensor, form: Orthogonalisation = "consistent") -> tuple[Tensor, Tensor]:
    """Return O_i, O_j for two single vectors `(d,)`."""
    squares = torch.stack((g_i.square().sum(), g_j.square().sum()))
    own, partner = orthogonal_step(g_i @ g_j, squares, share, form)
    own = f64(0) if own is None else own
    return own * g_i + partner[0] * g_j, own * g_j + partner[1] * g_i


def pair(g_i: Tensor, g_j: Tensor, energies: tuple[float, float], **readings: Any) -> tuple[Tensor, Tensor]:
    """Modulate two single vectors `(d,)`."""
    result = modulate({"i": g_i[None], "j": g_j[None]}, dict(zip("ij", energies, strict=True)), **readings)
    return result["i"][0], result["j"][0]


def random_gradients(seed: int, modalities: int = 2, batch: int = 5, width: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(modalities, batch, width, dtype=torch.float64, generator=generator)
    return {f"m{k}": value for k, value in enumerate(values)}
