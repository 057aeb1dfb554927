"""Images with most of their energy removed, so that they say about as much as the recordings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def without_leading_components(
    images: NDArray[np.float64], train: NDArray[np.bool_], keep: float
) -> tuple[NDArray[np.float64], int]:
    """Zero the leading principal components of images (n, h, w); returns the images and how many were zeroed.

    The components are fitted on the training images alone, and the largest number of them is zeroed that
    leaves at least the share `keep` of the variance (the idea of AV-MNIST).
    """
    from sklearn.decomposition import PCA

    flat = images.reshape(len(images), -1)
    pca = PCA(svd_solver="full").fit(flat[train])
    left = 1 - np.cumsum(pca.explained_variance_ratio_)
    zeroed = int((left >= keep).sum())
    scores = pca.transform(flat)
    scores[:, :zeroed] = 0
    return pca.inverse_transform(scores).reshape(images.shape), zeroed
