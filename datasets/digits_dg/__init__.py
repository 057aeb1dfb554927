"""Handwritten digits upright and rotated, cut in two: three domains to train on two and test on the third."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from benchmark.dataset import Dataset, DatasetCard, stratified_parts
from datasets.digits import Digits

if TYPE_CHECKING:
    from benchmark.preparation import PreparedWriter

DEGREES = {"r0": 0, "r30": 30, "r60": 60}


class DigitsDG(Dataset):
    """scikit-learn's digits, a third each rotated by 0, 30 and 60 degrees; then `upper` is rows 1-3, `lower` 4-8."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="digits_dg",
        title="Handwritten digits in three rotations, upper and lower part",
        licence=Digits.card.licence,
        citation=Digits.card.citation,
        shapes=Digits.card.shapes,
        classes=Digits.card.classes,
        splits={
            "stratified": "every class is dealt to the three domains in the order of a hash of the image number, so "
            "that an image is in one domain only; of each class and domain, 70/10/20 % in the same order"
        },
        default_split="stratified",
        domains=tuple(DEGREES),
    )

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Rotate whole images, each as its domain has it, and cut them in two."""
        # Imported here: these take seconds that listing the datasets must not.
        from datasets._digit_domains import dealt, image_keys, rotated
        from datasets.digits.images import handwritten_digits

        images, labels = handwritten_digits()
        domains = dealt(labels.tolist(), len(DEGREES))
        styles = np.stack([rotated(images, degrees, largest=16) for degrees in DEGREES.values()])
        turned = styles[domains, np.arange(len(images))].astype(np.float16)
        out.array("upper", turned[:, None, :3])
        out.array("lower", turned[:, None, 3:])
        strata = [label * len(DEGREES) + domain for label, domain in zip(labels.tolist(), domains, strict=True)]
        out.samples(
            [f"digit-{number:04d}" for number in range(len(labels))],
            labels.tolist(),
            splits={"stratified": stratified_parts(image_keys(len(labels)), strata)},
            domains=domains,
        )
