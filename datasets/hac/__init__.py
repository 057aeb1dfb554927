"""Actions of humans, animals and cartoon figures: three domains to train on two and test on the third."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmark.dataset import Checksum, Dataset, DatasetCard, Source
from datasets._clips.windows import SHAPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from benchmark.preparation import PreparedWriter
    from datasets._clips.windows import Window

HOST = "https://huggingface.co/datasets/hdong51/Human-Animal-Cartoon/resolve/e74938ea09a8b296f6fd8afbb89bfc53dcbc9100"
SIMMMDG = "https://raw.githubusercontent.com/donghao51/SimMMDG/fbca1f060ce9aa32fef21b9556b18ef70c4a6579"
# Nobody publishes a checksum of human.zip: the first copy that is fetched is the one.
ARCHIVES = {
    "human.zip": "",
    "animal.zip": "fe6ae283c00957dc167266d760c04b90fe325071acf34cb09e7f83d4b384ad3b",
    "cartoon.zip": "436caf28664e66291d70f7320d50477b08d563a21d4d05d7214ff5a818568805",
}
LISTS = {
    "HAC_train_only_human.csv": ("4592505e84ae0061306cf3b44593330be30de4dc57c11481b49601db3ab2e456", 36_663),
    "HAC_test_only_human.csv": ("fa8a6b0dc35ef87d5d1f5eec3f04850abf67809f6c72579f206b9c64d6ed63a5", 9_108),
    "HAC_train_only_animal.csv": ("cd6b5e5328b908932fe02f6ba9723df10ff80d06657b876c3a170ce15eb4666c", 14_522),
    "HAC_test_only_animal.csv": ("28e2c2482f7fef6a2412bd4acd19e5f13a7d132186b6d00b0d85fd8bcf7770d4", 3_467),
    "HAC_train_only_cartoon.csv": ("2df289fe434ece5871ca77868f0f56be82c37400d12722e36b39667541acdf48", 17_043),
    "HAC_test_only_cartoon.csv": ("06227ea1d45de2e2de033450f1fa684f69af193fa907c92cc7f7f316b7524729", 4_266),
}
PARTS_OF_LISTS = "the published lists, without the 24 training clips of humans that are test clips, too"


class HAC(Dataset):
    """3,357 clips of seven actions by humans, animals and cartoon figures, seen and heard.

    Human clips are from Kinetics, on which the published weights of video networks were trained: to these, `human` is
    no unseen domain. The flow that is published beside the clips is in `hac_flow`.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="hac",
        title="HAC: actions of humans, animals and cartoon figures",
        licence="Apache 2.0 by the tag of its page; the clips belong to those who uploaded them: for research, and not "
        "to be passed on",
        citation="Dong, Nejjar, Sun, Chatzi and Fink, SimMMDG: A Simple and Effective Framework for Multi-modal Domain "
        "Generalization, NeurIPS 2023, arXiv:2310.19795",
        shapes=SHAPES,
        classes=("sleeping", "watching tv", "eating", "drinking", "swimming", "running", "opening door"),
        splits={
            "official": f"{PARTS_OF_LISTS} and without 23 more that were cut from the same four videos as test clips; "
            "of every class and domain a fifth of training is held out for validation, in hash order of the videos "
            "that clips were cut from",
            "legacy": f"as SimMMDG and what follows it use {PARTS_OF_LISTS}: where a domain is left out, the other two "
            "are trained on by their training lists and validated on by their test lists, and all clips of the one "
            "left out are tested; 23 clips are thus trained on that were cut from the same four videos as others that "
            "validate. Where none is left out, as official with these 23 in training",
        },
        default_split="official",
        domains=("human", "animal", "cartoon"),
        sources=(
            *(
                Source(file=name, urls=(f"{HOST}/{name}",), checksum=Checksum(sha256))
                for name, sha256 in ARCHIVES.items()
            ),
            *(
                Source(file=name, urls=(f"{SIMMMDG}/dataset/HAC_Splits/{name}",), checksum=Checksum(sha256, size))
                for name, (sha256, size) in LISTS.items()
            ),
        ),
        held_out={"legacy": {"train": ("train", "val"), "val": ("test",), "test": ("train", "val", "test")}},
    )

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Store the middle window of every listed clip, whatever is wrong with it, and report that."""
        # Imported here: listing the datasets needs none of it.
        from datasets._clips.census import census
        from datasets._clips.pool import decode_all
        from datasets._clips.report import problem_report
        from datasets._clips.windows import crashed, store
        from datasets.hac import clips, lists

        card = self.card
        listed, twice = lists.read_lists(raw, card.domains, len(card.classes))
        ids = [clip.id for clip in listed]
        decode, broken = (partial(function, shapes=dict(card.shapes)) for function in (clips.decode, crashed))

        def windows(done: int) -> Iterator[Window]:
            return decode_all(
                decode, clips.read_files(raw, listed[done:], flow="flow" in card.shapes), broken, out.jobs
            )

        known = store(out, ids, windows)
        splits = {
            "official": {clip.id: clip.part for clip in listed},
            "legacy": {clip.id: clip.legacy for clip in listed},
        }
        out.samples(
            ids,
            [clip.label for clip in listed],
            splits={split: [*parts.values()] for split, parts in splits.items()},
            domains=[card.domains.index(clip.domain) for clip in listed],
        )
        out.say(_rates([clip.rate for clip in known.values() if clip.rate], clips.RATE))
        out.say(f"{len(twice)} clips are in a training and a test list, and test alone: {', '.join(sorted(twice))}")
        shared = [clip.id for clip in listed if not clip.part]
        out.say(f"{len(shared)} clips were cut from test clips' videos, and train in legacy alone: {', '.join(shared)}")
        missing = {name for name, clip in known.items() if not clip.found}
        faults = {name: known[name].faults for name in ids}
        out.census(census(splits, faults, missing))
        for line in problem_report(splits, faults, missing):
            out.say(line)

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Crop and mirror the frames of every sample alike, add noise to its sound and mute a band of it."""
        from datasets._clips.augmentation import augment

        return augment(inputs, generator)


def _rates(found: Collection[float], usual: float) -> str:
    """Return how many clips have another frame rate than the `usual` one, and which."""
    others = Counter(round(rate, 1) for rate in found if abs(rate - usual) > 0.05)
    named = "".join(f"; {count} at {rate}" for rate, count in sorted(others.items()))
    return f"{others.total()} of {len(found)} clips are not at {usual:g} frames per second{named}"
