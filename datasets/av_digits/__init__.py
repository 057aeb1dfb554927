"""Spoken and handwritten digits: small, real, audio-visual."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from benchmark.dataset import Dataset, DatasetCard, Manifest, Source
from datasets.av_digits.pairs import DOMAINS, Recording, paired_images

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from benchmark.preparation import PreparedWriter

REPOSITORY = "Jakobovski/free-spoken-digit-dataset"
COMMIT = "d6938f9bf1545aa66d8489fc9f1385a7abd64282"

# GitHub's archives are not byte-stable, so every recording has its own checksum.
RECORDINGS = Manifest(
    Path(__file__).with_name("fsdd_sha256.csv"),
    urls=(f"https://raw.githubusercontent.com/{REPOSITORY}/{COMMIT}/{{path}}",),
)

# Share of the images' variance that is kept: here the two modalities are about equally good alone.
KEEP = 0.10
LARGEST_SHIFT = 10


class AVDigits(Dataset):
    """3,000 spoken digits (Free Spoken Digit Dataset) paired by label with scikit-learn's handwritten."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="av_digits",
        title="AV-Digits: spoken and handwritten digits",
        licence="recordings CC BY-SA 4.0 (and so any published copy of the prepared data), images CC BY 4.0",
        citation="Jackson et al., Free Spoken Digit Dataset v1.0.10, 2020; Alpaydin and Kaynak, Optical "
        "Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998",
        shapes={"audio": (1, 129, 64), "image": (1, 8, 8)},
        classes=tuple("0123456789"),
        splits={
            "fsdd_official": "FSDD's own rule for recordings (indices 0-4 of every speaker and digit test), "
            "with 5-9 of its training part to validate; images 70/10/20 % of every class in hash order"
        },
        default_split="fsdd_official",
        domains=tuple(DOMAINS),
        sources=(
            Source(
                file="v1.0.10.zip",
                urls=(
                    f"https://github.com/{REPOSITORY}/archive/refs/tags/v1.0.10.zip",
                    f"https://github.com/{REPOSITORY}/archive/{COMMIT}.zip",
                ),
                manifest=RECORDINGS,
            ),
        ),
    )

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Turn recordings into spectrograms, degrade the images and pair them."""
        # Imported here: these take seconds that listing the datasets must not.
        from datasets.av_digits.degradation import without_leading_components
        from datasets.av_digits.spectrogram import log_spectrograms, read_waves
        from datasets.digits.images import handwritten_digits, image_parts

        paths = sorted(RECORDINGS.files)
        out.array("audio", log_spectrograms(read_waves([raw / path for path in paths])))

        images, labels = handwritten_digits()
        parts = image_parts(labels)
        degraded, zeroed = without_leading_components(images / 16, np.array(parts) == "train", KEEP)
        out.array("image", degraded[:, None].astype(np.float16))
        out.say(f"images: the {zeroed} leading principal components of {images[0].size} removed")

        recordings = [Recording.from_path(path) for path in paths]
        out.samples(
            [recording.name for recording in recordings],
            [recording.digit for recording in recordings],
            splits={"fsdd_official": [recording.part for recording in recordings]},
            domains=[recording.domain for recording in recordings],
            rows={"image": paired_images(recordings, labels.tolist(), parts)},
        )

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Shift every spectrogram in time by up to 10 frames (of 64), around the end."""
        import torch

        audio = inputs["audio"]
        shift = torch.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, (len(audio), 1), generator=generator)
        frames = (torch.arange(audio.shape[-1]) - shift) % audio.shape[-1]
        shifted = audio.gather(-1, frames.to(audio.device)[:, None, None].expand(audio.shape))
        return {**inputs, "audio": shifted}
