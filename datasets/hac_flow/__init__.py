"""The clips of HAC with the optical flow that is published beside them as a third modality."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from benchmark.dataset import DatasetCard
from datasets._clips.frames import STILL
from datasets._clips.windows import SHAPES_WITH_FLOW
from datasets.hac import HAC


class HACFlow(HAC):
    """HAC with flow: seen, heard and in motion."""

    card: ClassVar[DatasetCard] = replace(
        HAC.card,
        name="hac_flow",
        title="HAC with optical flow",
        shapes=SHAPES_WITH_FLOW,
        zeros={"flow": STILL},
        raw=HAC.card.name,
    )
