"""The segments of EPIC-Kitchens with the optical flow that is published beside the frames as a third modality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from benchmark.dataset import DatasetCard, Source
from datasets._clips.frames import STILL
from datasets._clips.windows import SHAPES_WITH_FLOW
from datasets.epic_kitchens import EpicKitchens, frames


class EpicKitchensFlow(EpicKitchens):
    """EPIC-Kitchens with flow: seen, heard and in motion."""

    card: ClassVar[DatasetCard] = replace(
        EpicKitchens.card,
        name="epic_kitchens_flow",
        title="EPIC-Kitchens in three domains, with optical flow",
        shapes=SHAPES_WITH_FLOW,
        sources=(
            *EpicKitchens.card.sources,
            Source(file="flow", manifest=frames(Path(__file__).with_name("flow_md5.csv"))),
        ),
        zeros={"flow": STILL},
        raw=EpicKitchens.card.name,
    )
