"""Actions that are seen and heard, from YouTube: the larger audio-visual dataset of the field."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmark.dataset import PARTS, Checksum, Dataset, DatasetCard, Source, files_below
from benchmark.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from benchmark.preparation import PreparedWriter

BML = "https://raw.githubusercontent.com/GeWu-Lab/BML_TPAMI2024/4b3aa4fd841856c4acbebf48549e6c59fbf7635e"
LIST = "KS_train_val.json"
CLIPS = "clips"
OBTAIN = (
    f"{CLIPS} is a folder of the mp4 files of Kinetics-400 under their own names and in any layout, all of them or "
    "those that the list names: unpack the archives of CVDF's mirror (436 GB), which "
    "https://s3.amazonaws.com/kinetics/400/train/k400_train_path.txt and the same for val and test list, or link a "
    "copy that you have."
)


class KineticsSounds(Dataset):
    """18,716 clips of 10 s from YouTube: the 31 actions of Kinetics-400 that can be seen and heard.

    Videos vanish from YouTube and from copies: whatever is there is prepared, and the prepared data say how many clips
    of each part were found. A clip without a sound track is not trained on; validation and test keep it with silence.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="kinetics_sounds",
        title="Kinetics-Sounds: actions in sight and sound",
        licence="annotations of Kinetics-400 CC BY 4.0; the clips belong to those who uploaded them to YouTube and "
        "must not be passed on",
        citation="Arandjelovic and Zisserman, Look, Listen and Learn, ICCV 2017, arXiv:1705.08168; Kay et al., The "
        "Kinetics Human Action Video Dataset, 2017, arXiv:1705.06950",
        shapes={"audio": (1, 1024, 128), "video": (3, 3, 224, 224)},
        classes=(
            "blowing_nose",
            "blowing_out_candles",
            "bowling",
            "chopping_wood",
            "dribbling_basketball",
            "laughing",
            "mowing_lawn",
            "playing_accordion",
            "playing_bagpipes",
            "playing_bass_guitar",
            "playing_clarinet",
            "playing_drums",
            "playing_guitar",
            "playing_harmonica",
            "playing_keyboard",
            "playing_organ",
            "playing_piano",
            "playing_saxophone",
            "playing_trombone",
            "playing_trumpet",
            "playing_violin",
            "playing_xylophone",
            "ripping_paper",
            "shoveling_snow",
            "shuffling_cards",
            "singing",
            "stomping_grapes",
            "tap_dancing",
            "tapping_guitar",
            "tapping_pen",
            "tickling",
        ),
        splits={
            "public": "the list of On-the-fly Modulation (Wei et al., TPAMI 2024; no official one exists): "
            "14,799/1,320/2,597 clips, each part from that of Kinetics-400; train and test are those of OGM-GE",
            "rgm-like": "the same clips pooled and cut 8:1:1 (14,959/1,872/1,885) within every class in the hash order "
            "of their YouTube ids: an approximation of the split of RGM, whose list is not public",
        },
        default_split="public",
        sources=(
            Source(
                file=LIST,
                urls=(f"{BML}/code/dataset/{LIST}",),
                checksum=Checksum("eb58a8bba30f0538c0ae245c5c83a67f35c5b8ca1050833738494016812e4f4a", 1_455_061),
            ),
            Source(file=CLIPS, suffix=".mp4", obtain=OBTAIN),
        ),
    )

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        """Store three frames and filter banks of every listed clip that is there, and report all others and faults."""
        from datasets._clips.pool import decode_all
        from datasets._clips.report import Note, problem_report
        from datasets._clips.sound import filter_bank
        from datasets.kinetics_sounds import clips

        listed = clips.read_list(raw / LIST)
        classes = {name: self.card.classes.index(clip.label) for name, clip in listed.items()}
        splits = {
            "public": {name: clip.part for name, clip in listed.items()},
            "rgm-like": dict(zip(listed, clips.rgm_like_parts([*listed], [*classes.values()]), strict=True)),
        }
        files = clips.locate(files_below(raw / CLIPS, ".mp4"), listed)
        found = [name for name in listed if name in files]
        self._refuse_empty_parts(splits, found, raw)

        def made(done: int) -> Generator[tuple[Mapping[str, NDArray[Any]], Note], None, None]:
            wanted = (files[name] for name in found[done:])
            for clip in decode_all(clips.decode, wanted, clips.crashed, out.jobs):
                inputs: dict[str, NDArray[Any]] = {"audio": filter_bank(clip.padded()), "video": clip.frames.images}
                yield inputs, Note(tuple(clip.faults), seen=clip.seen, heard=clip.heard)

        keys = [clips.fingerprint(name, files[name]) for name in found]
        stored = out.store(keys, {"audio": np.float16, "video": np.uint8}, made, Note)
        notes = dict(zip(found, stored, strict=True))
        seen, heard = ({name for name in found if getattr(notes[name], sense)} for sense in ("seen", "heard"))
        used = {
            split: {name: clips.used_part(parts[name], seen=name in seen, heard=name in heard) for name in found}
            for split, parts in splits.items()
        }
        for line in problem_report(
            splits, {name: note.faults for name, note in notes.items()}, listed.keys() - files.keys()
        ):
            out.say(line)
        self._refuse_empty_parts(used, found, raw)
        out.samples(
            found,
            [classes[name] for name in found],
            splits={split: [*parts.values()] for split, parts in used.items()},
        )
        out.census({split: clips.census(splits[split], used[split], seen, heard) for split in splits})

    def augment(self, inputs: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Crop and mirror the frames of every sample alike, and leave the sound as it is."""
        from datasets._clips.views import draw_views

        video = inputs["video"]
        return {**inputs, "video": draw_views(len(video), video.shape[-1], generator).apply(video)}

    def _refuse_empty_parts(self, splits: Mapping[str, Mapping[str, str]], found: Collection[str], raw: Path) -> None:
        """Raise DataError where no clip that was found is in a part of a split."""
        for split, parts in splits.items():
            empty = set(PARTS) - {parts[name] for name in found}
            if empty:
                raise DataError(
                    f"{self.card.name}: of the {len(found)} listed clips found below {raw / CLIPS} none can be used in "
                    f"{' and '.join(sorted(empty))} of split {split!r}. {OBTAIN} Then run `equipoise prepare "
                    f"{self.card.name}`."
                )
