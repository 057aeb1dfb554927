"""Spoken and handwritten digits in three domains: pairs of speakers whose digits also look different."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from benchmark.dataset import DatasetCard
from datasets.av_digits import RECORDINGS, AVDigits

if TYPE_CHECKING:
    from benchmark.preparation import PreparedWriter


class AVDigitsDG(AVDigits):
    """The recordings of `av_digits` by accent, each domain with whole images of its own in a style of its own."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="av_digits_dg",
        title="AV-Digits in three domains: speakers and image styles",
        licence=AVDigits.card.licence,
        citation=AVDigits.card.citation,
        shapes=AVDigits.card.shapes,
        classes=AVDigits.card.classes,
        splits={
            "by_index": "of every speaker and digit the recordings 0-9 test, 10-14 validate and 15-49 train; images "
            "are dealt to the domains in hash order, where of a class's n images round(0.8 n) train, but for "
            "the last eighth of them, which validates, and the rest test"
        },
        default_split="by_index",
        domains=AVDigits.card.domains,
        sources=AVDigits.card.sources,
        raw=AVDigits.card.name,
    )

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Turn recordings into spectrograms, give every image the style of its domain, and pair them there."""
        # Imported here: these take seconds that listing the datasets must not.
        from datasets._digit_domains import dealt
        from datasets.av_digits.pairs import Recording
        from datasets.av_digits.spectrogram import log_spectrograms, read_waves
        from datasets.av_digits_dg.pairs import image_parts, paired_images, recording_part
        from datasets.av_digits_dg.styles import styled
        from datasets.digits.images import handwritten_digits

        paths = sorted(RECORDINGS.files)
        out.array("audio", log_spectrograms(read_waves([raw / path for path in paths])))

        images, drawn = handwritten_digits()
        labels = drawn.tolist()
        domains = dealt(labels, len(self.card.domains))
        out.array("image", styled(images / 16, domains)[:, None].astype(np.float16))

        recordings = [Recording.from_path(path) for path in paths]
        out.samples(
            [recording.name for recording in recordings],
            [recording.digit for recording in recordings],
            splits={"by_index": [recording_part(recording) for recording in recordings]},
            domains=[recording.domain for recording in recordings],
            rows={"image": paired_images(recordings, labels, domains, image_parts(labels, domains))},
        )
