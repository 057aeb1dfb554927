"""scikit-learn's bundled handwritten digits, verified, and their hash-ordered split."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from benchmark.dataset import stratified_parts
from benchmark.errors import DataError

IMAGES_SHA256 = "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
LABELS_SHA256 = "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


def handwritten_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (1797, 8, 8) of 0 .. 16 and labels (1797,); raises DataError if they are others."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    images, labels = bundled.images.astype(np.uint8), bundled.target.astype(np.uint8)
    for what, values, expected in (("images", images, IMAGES_SHA256), ("labels", labels, LABELS_SHA256)):
        found = hashlib.sha256(values.tobytes()).hexdigest()
        if found != expected:
            raise DataError(
                f"The digit {what} of scikit-learn have sha256 {found[:12]}… instead of {expected[:12]}…: "
                "install the scikit-learn version of the constraints file."
            )
    return images, labels


def image_parts(labels: NDArray[np.uint8]) -> list[str]:
    """Return train, val or test of every image: 70, 10 and 20 % of each class (1,252, 181 and 364 images)."""
    return stratified_parts([f"avd0:img:{number}" for number in range(len(labels))], labels.tolist())
