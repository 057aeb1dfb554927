"""How the images of each domain look: as they are, rotated, or under a veil."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datasets._digit_domains import rotated

DEGREES = 25
VEIL = 0.4


def styled(images: NDArray[np.float64], domains: Sequence[int]) -> NDArray[np.float64]:
    """Return images (n, 8, 8) of 0 .. 1 in the style of their domain, 0 to 2.

    0: as they are; 1: rotated counter-clockwise by 25 degrees; 2: 0.6 x + 0.4 g, with g rising from 0 at the left edge
    to 1 at the right.
    """
    ramp = np.linspace(0, 1, images.shape[-1])
    styles = np.stack([images, rotated(images, DEGREES, largest=1), (1 - VEIL) * images + VEIL * ramp])
    chosen: NDArray[np.float64] = styles[list(domains), np.arange(len(images))]
    return chosen
