"""The clips of CREMA-D heard through filter banks, where `cremad` has a spectrogram."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from benchmark.dataset import DatasetCard
from datasets.cremad import CREMAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from datasets._clips.sound import Sound


class CREMADFilterBank(CREMAD):
    """CREMA-D as MMPareto, Diagnosing & Re-learning and BalanceBenchmark hear it: whole recordings in mel bands.

    Their numbers can be compared with those of this dataset alone; the RGM paper and OGM-GE use that of `cremad`.
    """

    card: ClassVar[DatasetCard] = replace(
        CREMAD.card,
        name="cremad_fbank",
        title="CREMA-D with filter banks",
        shapes={**CREMAD.card.shapes, "audio": (1, 1024, 128)},
        raw=CREMAD.card.name,
    )
    rate = 16_000

    def spectrogram(self, sound: Sound) -> NDArray[np.float16]:
        """Return what is stored of a recording at `rate`: Kaldi's log mel energies (1, 1024, 128) of its first 10 s."""
        from datasets._clips.sound import filter_bank

        return filter_bank(sound)
