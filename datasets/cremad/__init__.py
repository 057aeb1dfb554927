"""Acted emotions in face and voice: the audio-visual dataset that most methods report."""

from __future__ import annotations

from collections import ChainMap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmark.dataset import PARTS, Checksum, Dataset, DatasetCard, Manifest, Source

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from benchmark.preparation import PreparedWriter
    from datasets._clips.sound import Sound

REPOSITORY, COMMIT = "CheyneyComputerScience/CREMA-D", "1658cd342dff90010aa843eaeebd53610a08b1dc"
OGM_GE = "https://raw.githubusercontent.com/GeWu-Lab/OGM-GE_CVPR2022/343dc1d95c9bda88f105c0da8d24f185e0e98b54"
RELEARNING = (
    "https://raw.githubusercontent.com/GeWu-Lab/Diagnosing_Relearning_ECCV2024/025085ea82ed784c6ab6e5fb1b08bfe498dd0fc7"
)

# Every clip is a Git LFS object of its own, whose name there is the sha256 of its bytes; an archive of the repository
# holds pointers alone.
CLIPS = Manifest(
    Path(__file__).with_name("cremad_sha256.csv"),
    urls=(f"https://media.githubusercontent.com/media/{REPOSITORY}/{COMMIT}/{{path}}",),
    lfs=(
        "https://gitlab.com/cs-cooper-lab/crema-d-mirror.git",
        "https://github.com/CheyneyComputerScience/CREMA-D.git",
    ),
)
LISTS = {part: f"{part}.csv" for part in PARTS}


class CREMAD(Dataset):
    """7,442 clips of 91 actors who say one of 12 sentences in one of 6 emotions.

    The default split `legacy` is what published numbers use, and it is NOT speaker-independent: all 91 actors are in
    training, validation and test, and a model may know an actor's face and voice rather than an emotion. `clean` keeps
    the actors apart. Labels are the emotions that were asked for: people who see and hear a clip agree with 72 %. Other
    papers hear the clips through filter banks: `cremad_fbank`.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="cremad",
        title="CREMA-D: acted emotions in face and voice",
        licence="database ODbL 1.0, contents DbCL 1.0; the authors ask users to fill a short form: https://docs.google.com/"
        "forms/d/e/1FAIpQLSdvOR994_Hsx7OkBU3oCzluXcmxw2P1nr-zBxcPgVBNLdD9Eg/viewform",
        citation="Cao, Cooper, Keutmann, Gur, Nenkova and Verma, CREMA-D: Crowd-sourced Emotional Multimodal Actors "
        "Dataset, IEEE Transactions on Affective Computing 5(4), 2014, doi:10.1109/TAFFC.2014.2336244",
        shapes={"audio": (1, 257, 188), "video": (3, 3, 224, 224)},
        classes=("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
        splits={
            "legacy": "the lists of OGM-GE (6,698/744; no official ones exist), which most papers use, with the 744 "
            "clips of training that Diagnosing & Re-learning validates on; all 91 actors are in every part, and three "
            "recordings that are there twice, under two labels, are in two",
            "clean": "no actor in two parts: 63/9/19 of the 91 actors in hash order",
        },
        default_split="legacy",
        sources=(
            Source(file="clips", manifest=CLIPS),
            Source(
                file=LISTS["train"],
                urls=(f"{OGM_GE}/data/CREMAD/train.csv",),
                checksum=Checksum("68d0d3fd253830328fc92c68f3cf2e215db8c5b86757ad9c5112d2c76ba68bde", 140_658),
            ),
            Source(
                file=LISTS["val"],
                urls=(f"{RELEARNING}/code/dataset/cremad/val.csv",),
                checksum=Checksum("ecbd82453caca8a7126df010d67b33813387af3cbe32efe5eb5a94ed2d161291", 14_880),
            ),
            Source(
                file=LISTS["test"],
                urls=(f"{OGM_GE}/data/CREMAD/test.csv",),
                checksum=Checksum("14866c99301fd56fb4a16f8a7048a8a6372a47069aee9f216443bc718be45f1f", 15_624),
            ),
        ),
    )

    rate = 22_050
    """Hz at which recordings are read."""

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Store three frames and a spectrogram of every clip, whatever is wrong with it, and report that."""
        from datasets._clips.census import census
        from datasets._clips.pool import decode_all
        from datasets._clips.report import Note, problem_report
        from datasets.cremad import clips

        lists = {part: clips.read_list(raw / file) for part, file in LISTS.items()}
        names = sorted(lists["train"] | lists["test"])
        manifests = [source.manifest.files for source in self.card.sources if source.manifest]
        same = clips.shared_recordings(ChainMap(*manifests))

        def made(done: int) -> Generator[tuple[Mapping[str, NDArray[Any]], Note], None, None]:
            decode, crashed = partial(clips.decode, raw, self.rate), partial(clips.crashed, self.rate)
            for clip in decode_all(decode, names[done:], crashed, out.jobs):
                inputs: dict[str, NDArray[Any]] = {"audio": self.spectrogram(clip.sound), "video": clip.frames.images}
                yield inputs, Note(tuple(clip.faults))

        notes = out.store(names, {"audio": np.float16, "video": np.uint8}, made, Note)
        faults = {
            name: [*note.faults, *([f"audio is that of {same[name]}"] if name in same else [])]
            for name, note in zip(names, notes, strict=True)
        }
        splits = {
            "legacy": clips.legacy_parts(names, val=lists["val"], test=lists["test"]),
            "clean": clips.clean_parts(names),
        }
        classes = [self.card.classes.index(clips.emotion(name)) for name in names]
        out.samples(names, classes, splits=splits)
        by_name = {split: dict(zip(names, parts, strict=True)) for split, parts in splits.items()}
        out.census(census(by_name, faults))
        for line in problem_report(by_name, faults):
            out.say(line)

    def spectrogram(self, sound: Sound) -> NDArray[np.float16]:
        """Return what is stored of a recording at `rate`: OGM-GE's log spectrogram (1, 257, 188) of its first 3 s."""
        from datasets._clips.sound import log_spectrogram

        return log_spectrogram(sound)

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Crop and mirror the frames of every sample alike, and leave the sound as it is."""
        from datasets._clips.views import draw_views

        video = inputs["video"]
        return {**inputs, "video": draw_views(len(video), video.shape[-1], generator).apply(video)}
