"""Handwritten digits cut in two: the upper three rows of an image say less than the lower five."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmark.dataset import Dataset, DatasetCard

if TYPE_CHECKING:
    from benchmark.preparation import PreparedWriter


class Digits(Dataset):
    """scikit-learn's 1,797 digits of 8 x 8 pixels: `upper` is rows 1-3, `lower` rows 4-8; no download."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="digits",
        title="Handwritten digits, upper and lower part",
        licence="CC BY 4.0",
        citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository, 1998",
        shapes={"upper": (1, 3, 8), "lower": (1, 5, 8)},
        classes=tuple("0123456789"),
        splits={
            "stratified": "70/10/20 % of every class in the order of a hash of the image number, so that no "
            "library version changes it; the bundled images have no split of their own"
        },
        default_split="stratified",
    )

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Cut the images in two."""
        # Imported here: scikit-learn takes a second that listing the datasets must not.
        from datasets.digits.images import handwritten_digits, image_parts

        images, labels = handwritten_digits()
        out.array("upper", images[:, None, :3])
        out.array("lower", images[:, None, 3:])
        ids = [f"digit-{number:04d}" for number in range(len(labels))]
        out.samples(ids, labels.tolist(), splits={"stratified": image_parts(labels)})
