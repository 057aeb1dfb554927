"""Actions in three kitchens, as those who act see and hear them: train on two of these and test on the third."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from benchmark.dataset import Checksum, Dataset, DatasetCard, Manifest, Source
from datasets._clips.windows import SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from benchmark.preparation import PreparedWriter
    from datasets._clips.windows import Window

BRISTOL = "https://data.bris.ac.uk/datasets/3h91syskeag572hl6tvuovwv4d"
AUDIO = "EPIC-KITCHENS-audio.zip"
AUDIO_HOST = (
    "https://huggingface.co/datasets/hdong51/Human-Animal-Cartoon/resolve/e74938ea09a8b296f6fd8afbb89bfc53dcbc9100"
)
LIST_HOSTS = (
    "https://raw.githubusercontent.com/jonmun/MM-SADA-code/69fe0f71ec795677461e0ed9383ea913c7c5425c/Annotations",
    "https://raw.githubusercontent.com/donghao51/SimMMDG/fbca1f060ce9aa32fef21b9556b18ef70c4a6579/dataset/"
    "MM-SADA_Domain_Adaptation_Splits",
)
LISTS = {
    "D1_train.pkl": ("01011c76c5fd892125d7091e7c34da97c5abb822ebe63366a67b07eeb97bc2d9", 124_563),
    "D1_test.pkl": ("9775ce39072635a21883f11095f6bead459f07a3db4deeea894397d9122705b9", 35_737),
    "D2_train.pkl": ("5872f41bd6624901057af20cdd3fd50d9bfe075873226bbbfc86f3d61100288c", 192_400),
    "D2_test.pkl": ("b6b403ec0c72f24818a816590be3d36e67decb7803af20ad91dcf24a6fa62409", 59_487),
    "D3_train.pkl": ("ea46462cc5b5ecad46613e3c6da8cddd3ef9550b59a8d7fd9c67f8e3b81b4b94", 294_407),
    "D3_test.pkl": ("4b09fb41be0dd612d8b2ff4d06466af4422454b6cd90b31d93e6a7ad13cb537f", 75_490),
}


def frames(manifest: Path) -> Manifest:
    """Return what the publisher says of the archives of frames, one per video: md5 and no size."""
    return Manifest(manifest, urls=(f"{BRISTOL}/{{path}}",))


class EpicKitchens(Dataset):
    """10,094 actions of eight verbs in 64 videos from three kitchens, seen and heard by those who act.

    Verbs are numbered as in EPIC-KITCHENS-55; EPIC-KITCHENS-100 numbers them otherwise. Some are rare: of the test
    segments of D3 one mixes and five pour. The published flow is in `epic_kitchens_flow`.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="epic_kitchens",
        title="EPIC-Kitchens in three domains: actions in three kitchens",
        licence="CC BY-NC 4.0: not for commercial use",
        citation="Damen et al., Scaling Egocentric Vision: The EPIC-KITCHENS Dataset, ECCV 2018, arXiv:1804.02748; "
        "domains: Munro and Damen, Multi-Modal Domain Adaptation for Fine-Grained Action Recognition, CVPR 2020, "
        "arXiv:2001.09691",
        shapes=SHAPES,
        classes=("take", "put", "open", "close", "wash", "cut", "mix", "pour"),
        splits={
            "official": "the lists of Munro and Damen, whose training and test segments are from different videos; of "
            "each domain, videos with up to 15 % of the training segments are held out for validation, in hash order",
            "legacy": "as SimMMDG and what follows it use these lists: where a domain is left out, the other two are "
            "trained on by their training lists and validated on by their test lists, and the test list of the one "
            "left out is tested. Where none is left out, as official",
        },
        default_split="official",
        domains=("D1", "D2", "D3"),
        sources=(
            Source(file="frames", manifest=frames(Path(__file__).with_name("frames_md5.csv"))),
            Source(
                file=AUDIO,
                urls=(f"{AUDIO_HOST}/{AUDIO}",),
                checksum=Checksum("82916c5d6bb93eb30613985176b92838ffd2563b390aa61dfa6a1587ee118b04"),
            ),
            *(
                Source(file=name, urls=tuple(f"{host}/{name}" for host in LIST_HOSTS), checksum=Checksum(sha256, size))
                for name, (sha256, size) in LISTS.items()
            ),
        ),
        held_out={"legacy": {"train": ("train", "val"), "val": ("test",), "test": ("test",)}},
    )

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Store the middle window of every annotated segment, whatever is wrong with it, and report that."""
        # Imported here: listing the datasets needs none of it.
        from datasets._clips.census import census
        from datasets._clips.pool import decode_all
        from datasets._clips.report import problem_report
        from datasets._clips.windows import crashed, store
        from datasets.epic_kitchens import clips
        from datasets.epic_kitchens.segments import official_parts, read_segments

        card = self.card
        segments = read_segments(raw, card.domains, len(card.classes))
        ids = [segment.id for segment in segments]
        decode, broken = (partial(function, shapes=dict(card.shapes)) for function in (clips.decode, crashed))
        frames, flow = card.shapes["video"][1], "flow" in card.shapes

        def windows(done: int) -> Iterator[Window]:
            cuts = clips.read_cuts(raw, raw / AUDIO, segments[done:], frames, flow=flow)
            return decode_all(decode, cuts, broken, out.jobs)

        known = store(out, ids, windows)
        parts = official_parts(segments)
        out.samples(
            ids,
            [segment.label for segment in segments],
            # The columns are the same; they differ in what leaving a domain out makes of them.
            splits=dict.fromkeys(card.splits, parts),
            domains=[card.domains.index(segment.domain) for segment in segments],
        )
        missing = {name for name, clip in known.items() if not clip.found}
        by_name = {"official": dict(zip(ids, parts, strict=True))}
        faults = {name: known[name].faults for name in ids}
        # Both splits have the same parts.
        out.census(dict.fromkeys(card.splits, census(by_name, faults, missing)["official"]))
        for line in problem_report(by_name, faults, missing):
            out.say(line)

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Crop and mirror the frames of every sample alike, add noise to its sound and mute a band of it."""
        from datasets._clips.augmentation import augment

        return augment(inputs, generator)
