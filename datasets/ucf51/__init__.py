"""Human actions in frames and optical flow: the 51 classes of UCF101 that are not in UCF50."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmark.dataset import Checksum, Dataset, DatasetCard, Source
from datasets._clips.archives import read_zip
from datasets._clips.census import census
from datasets._clips.frames import STILL
from datasets._clips.pool import decode_all
from datasets._clips.report import flow_report, problem_report
from datasets.ucf51 import clips, lists

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from benchmark.preparation import PreparedWriter

VIDEOS, LISTS, FLOW = "UCF101_videos.zip", "UCF101TrainTestSplits-RecognitionTask.zip", "ucf101_flow_mp4.tar.gz"
MULTIOOD = "https://huggingface.co/datasets/hdong51/MultiOOD/resolve/1b6b7e6560df27c7b87f7b9c7c0831a340449129"

# In the order of UCF101's own numbers.
CLASSES = """
ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BasketballDunk BlowDryHair BlowingCandles
BodyWeightSquats Bowling BoxingPunchingBag BoxingSpeedBag BrushingTeeth CliffDiving CricketBowling CricketShot
CuttingInKitchen FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl Haircut Hammering HammerThrow
HandstandPushups HandstandWalking HeadMassage IceDancing Knitting LongJump MoppingFloor ParallelBars PlayingCello
PlayingDaf PlayingDhol PlayingFlute PlayingSitar Rafting ShavingBeard Shotput SkyDiving SoccerPenalty StillRings
SumoWrestling Surfing TableTennisShot Typing UnevenBars WallPushups WritingOnBoard
"""


class UCF51(Dataset):
    """6,845 clips of 51 actions, cut from 25 groups of videos per class.

    Clips of one group are near duplicates. The splits `official1` and `paper-size` keep groups apart; `random80` does
    not and shows what that is worth: its accuracy is no measure of recognising an action. The flow is the one that is
    published; `ucf51_computed_flow` has one that is computed from the videos.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="ucf51",
        title="UCF-51: human actions in frames and optical flow",
        licence="for research; the authors' page names no licence, and asks for no form",
        citation="Soomro, Zamir and Shah, UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild, "
        "CRCV-TR-12-01, 2012, arXiv:1212.0402; flow: Dong, Zhao, Chatzi and Fink, MultiOOD, NeurIPS 2024",
        shapes={"video": (3, 3, 224, 224), "flow": (2, 3, 224, 224)},
        classes=tuple(CLASSES.split()),
        splits={
            "official1": "the first official lists (4,901/1,944): groups 1-7 are test; groups 24 and 25 of training "
            "are held out for validation",
            "paper-size": "as many clips as in RGM (5,466/1,379), whose list is not public: groups 1, 2, 3, 9 and 15 "
            "are test, one of 924 choices of these sizes; groups 24 and 25 of training are held out for validation",
            "random80": "the same sizes in hash order whatever the group, to show the leak: near duplicates of test "
            "clips are in training",
        },
        default_split="official1",
        sources=(
            Source(
                file=VIDEOS,
                urls=(f"https://storage.googleapis.com/thumos14_files/{VIDEOS}",),
                checksum=Checksum("dabf56f573cd19c79e096563529fec8126a2a34e18e10c72eb621dd687532b0d", 6_960_400_115),
            ),
            Source(
                file=LISTS,
                urls=(
                    f"https://www.crcv.ucf.edu/data/UCF101/{LISTS}",
                    f"https://www.crcv.ucf.edu/wp-content/uploads/2019/03/{LISTS}",
                ),
                checksum=Checksum("5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27", 113_943),
            ),
            Source(
                file=FLOW,
                urls=(f"{MULTIOOD}/{FLOW}",),
                checksum=Checksum("d8f43489f760263b20cc0309b1d8431706c1e63983d4a236312e3da5a02bbe03", 2_655_599_178),
            ),
        ),
        zeros={"flow": STILL},
    )

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Store three frames and three flow pairs of every listed clip, whatever is wrong with it, and report that."""
        train, test = lists.read_lists(raw / LISTS, self.card.classes)
        labels = train | test
        names = sorted(labels)

        def decoded_videos(done: int) -> Iterator[clips.Decoded]:
            files = self.videos(raw, names[done:])
            return decode_all(clips.decode_video, files, clips.crashed_video, out.jobs)

        videos = _store(out, "video", names, decoded_videos)
        flows = _store(out, "flow", names, lambda done: self.flows(raw, names, done, out.jobs))
        splits = {
            "official1": lists.group_parts(names, test.keys()),
            "paper-size": lists.group_parts(names, {name for name in names if lists.group(name) in lists.PAPER_GROUPS}),
            "random80": lists.shuffled_parts(names),
        }
        # Flow is stored in the order in which it comes.
        row_of = {clip: row for row, clip in enumerate(flows)}
        out.samples(
            names,
            [labels[name] for name in names],
            splits=splits,
            rows={"flow": [row_of[name] for name in names]},
        )
        out.say(flow_report(out.stored("flow")))
        by_name = {split: dict(zip(names, parts, strict=True)) for split, parts in splits.items()}
        faults = {name: clips.all_faults(videos[name], flows[name]) for name in names}
        missing = {name for name in names if clips.NO_FILE in videos[name].faults}
        out.census(census(by_name, faults, missing))
        for line in problem_report(by_name, faults, missing):
            out.say(line)

    def videos(self, raw: Path, names: Sequence[str]) -> Iterator[clips.VideoFile]:
        """Yield every clip with its file, in their order."""
        return zip(names, read_zip(raw / VIDEOS, [f"{name}.avi" for name in names]), strict=True)

    def flows(self, raw: Path, names: Sequence[str], done: int, jobs: int | None) -> Iterator[clips.Decoded]:
        """Yield the published flow of all clips but the first `done`, in the order of its archive, a stream."""
        pairs = islice(clips.flow_files(raw / FLOW, names), done, None)
        return decode_all(clips.decode_flow, pairs, clips.crashed_flow, jobs)

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Crop and mirror frames and flow of every sample alike; what moves right then moves left."""
        from datasets._clips.views import draw_views

        video, flow = inputs["video"], inputs["flow"]
        views = draw_views(len(video), video.shape[-1], generator)
        return {**inputs, "video": views.apply(video), "flow": views.apply_flow(flow)}


def _store(
    out: PreparedWriter, modality: str, names: Sequence[str], decoded: Callable[[int], Iterable[clips.Decoded]]
) -> dict[str, clips.Note]:
    """Store images in the order in which `decoded` gives them from a number on; returns the clips' notes in it."""

    def made(done: int) -> Generator[tuple[Mapping[str, NDArray[np.uint8]], clips.Note], None, None]:
        return (({modality: clip.images}, clip.note) for clip in decoded(done))

    return {note.clip: note for note in out.store(names, {modality: np.uint8}, made, clips.Note)}
