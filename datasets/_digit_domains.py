"""What datasets of handwritten digits in several domains share: how images are dealt to them, and rotated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.dataset import hash_order


def image_keys(count: int) -> list[str]:
    """Return what the hash order of scikit-learn's digits is over, in every dataset of the suite."""
    return [f"avd0:img:{number}" for number in range(count)]


def dealt(labels: Sequence[int], domains: int) -> list[int]:
    """Return the domain of every image: each class is dealt like cards, in hash order, to `domains` domains."""
    given = [0] * len(labels)
    met = dict.fromkeys(labels, 0)
    for image in hash_order(image_keys(len(labels))):
        given[image] = met[labels[image]] % domains
        met[labels[image]] += 1
    return given


def rotated(images: NDArray[Any], degrees: float, largest: float) -> NDArray[np.float64]:
    """Return images (n, h, w) turned counter-clockwise about their centre, of the same size and in 0 .. `largest`.

    Values are interpolated bilinearly; what comes from outside an image is 0.
    """
    from scipy.ndimage import rotate

    turned: NDArray[np.float64] = rotate(images.astype(np.float64), degrees, axes=(2, 1), reshape=False, order=1)
    return turned.clip(0, largest)
