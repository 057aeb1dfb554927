from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import datasets.kinetics_sounds
from baselines.joint import Joint
from benchmark.data import load
from benchmark.dataset import PARTS
from benchmark.errors import DataError
from benchmark.fetch import fetch
from benchmark.preparation import prepare
from benchmark.protocol import Optimizer, Protocol
from benchmark.registry import DATASETS
from benchmark.task import Task
from benchmark.training import fit
from datasets._clips.frames import Frames
from datasets._clips.sound import Sound, filter_bank
from datasets.kinetics_sounds import KineticsSounds
from datasets.kinetics_sounds.clips import (
    Decoded,
    clip_name,
    crashed,
    decode,
    locate,
    read_list,
    rgm_like_parts,
    used_part,
)
from tests.datasets.archives import Archive, archive_of
from tests.datasets.kinetics_lookalike import (
    BLIND_TEST,
    LABELS,
    MISSING,
    MUTE,
    MUTE_TEST,
    REPLACED,
    SECONDS,
    TORN,
    name,
    write_list,
    youtube,
)
from tests.datasets.lookalikes import tone


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with archive_of(KineticsSounds, tmp_path_factory.mktemp("kinetics")) as found:
        yield found


def row(copy: Archive, number: int) -> int:
    return copy.prepared.index.ids.index(name(number))


def test_the_card_has_the_31_classes_in_alphabetical_order() -> None:
    classes = KineticsSounds.card.classes
    assert len(classes) == 31
    assert list(classes) == sorted(classes)


@pytest.mark.parametrize("video", ["-abc_DEF123", "__________A", "00000000000", "a_000001_00"])
@pytest.mark.parametrize("ending", ["_7", "_000007", "_7_17", "_000007_000017"])
def test_every_spelling_of_a_clip_gives_one_name(video: str, ending: str) -> None:
    assert clip_name(video + ending) == f"{video}_000007"


@pytest.mark.parametrize(
    "text", ["-abc_DEF123", "-abc_DEF12_7", "-abc_DEF123_7_17_27", "._abc_DEF123_7", "-abc_DEF123_"]
)
def test_other_texts_are_no_clip(text: str) -> None:
    assert clip_name(text) is None


def test_the_list_is_read_by_name_and_a_text_that_is_no_clip_stays_to_be_reported(tmp_path: Path) -> None:
    write_list(tmp_path / "list.json")
    listed = read_list(tmp_path / "list.json")
    assert list(listed) == sorted(name(number) for number in range(24))
    assert (listed[name(0)].part, listed[name(0)].label) == ("train", "blowing_nose")
    assert (listed[name(23)].part, listed[name(23)].label) == ("test", "tickling")
    odd = {"odd": {"subset": "testing", "label": "bowling"}}
    (tmp_path / "list.json").write_text(json.dumps({"labels": LABELS, "database": odd}))
    assert list(read_list(tmp_path / "list.json")) == ["odd"]


def test_files_are_found_by_id_and_start_in_every_copy() -> None:
    paths = [Path(text) for text in ("b/-abc_DEF123_000000_000010.mp4", "-abc_DEF123_0.mp4", "-abc_DEF123_000005.mp4")]
    assert locate(paths, {"-abc_DEF123_000000", "__________A_000001"}) == {"-abc_DEF123_000000": tuple(paths[:2])}


def test_the_rgm_like_split_cuts_every_class_8_1_1_by_the_id_alone() -> None:
    names = [f"{number:011d}_000001" for number in range(60)]
    parts = rgm_like_parts(names, [number % 3 for number in range(60)])
    for label in range(3):
        assert Counter(parts[label::3]) == {"train": 16, "val": 2, "test": 2}
    assert parts == rgm_like_parts([text.replace("_000001", "_000099") for text in names], [n % 3 for n in range(60)])


def test_training_needs_frames_and_sound_and_the_other_parts_one_of_them() -> None:
    found = {
        (part, seen, heard): used_part(part, seen=seen, heard=heard)
        for part in PARTS
        for seen in (True, False)
        for heard in (True, False)
    }
    assert [key for key, part in found.items() if not part] == [
        *[("train", True, False), ("train", False, True), ("train", False, False)],
        *[("val", False, False), ("test", False, False)],
    ]
    assert {key[0] for key, part in found.items() if part == key[0]} == set(PARTS)


def test_a_clip_that_takes_the_decoder_down_is_not_used() -> None:
    assert crashed(()).faults == ["video takes the decoder down", "audio not read", "not used"]


def test_black_frames_are_a_fault_and_silence_is_never_longer_than_a_clip() -> None:
    black, white = (np.full((3, 3, 224, 224), value, np.uint8) for value in (0, 255))
    sound, none = (Sound(np.ones(n, np.float32), 16_000) for n in (400, 0))
    assert Decoded(Frames(black, 1.0), sound).faults == ["video black", "not trained on"]
    assert Decoded(Frames(white, 1.0), sound).faults == []
    assert Decoded(Frames(white, 1.0), sound).padded() is sound
    assert Decoded(Frames(white, 1e9), none).padded().seconds == 10


def test_the_list_is_verified_and_the_clips_are_counted(copy: Archive) -> None:
    lines = ["KS_train_val.json: 1 expected, 1 found, 0 broken", "clips: 26 found, without checksums"]
    assert [str(found) for found in copy.found] == copy.said[:2] == lines


def test_prepared_arrays_hold_three_frames_and_filter_banks_of_every_clip_that_is_there(copy: Archive) -> None:
    video, audio = copy.prepared.array("video"), copy.prepared.array("audio")
    assert (video.shape, video.dtype.name) == ((23, 3, 3, 224, 224), "uint8")
    assert (audio.shape, audio.dtype.name) == ((23, 1, 1024, 128), "float16")
    assert copy.prepared.index.ids == tuple(sorted(name(number) for number in set(range(24)) - {MISSING}))
    for number in set(range(24)) - {MISSING}:
        assert copy.prepared.index.labels[row(copy, number)] == KineticsSounds.card.classes.index(LABELS[number // 8])


def test_what_was_listed_found_and_used_is_kept_with_the_data(copy: Archive) -> None:
    public = copy.prepared.meta.splits["public"]
    assert public.counts == {"train": 12, "val": 3, "test": 6}
    assert public.census == {
        "train": {"listed": 15, "found": 14, "with frames": 13, "with sound": 12, "used": 12},
        "val": {"listed": 3, "found": 3, "with frames": 3, "with sound": 3, "used": 3},
        "test": {"listed": 6, "found": 6, "with frames": 5, "with sound": 5, "used": 6},
    }
    other = copy.prepared.meta.splits["rgm-like"].census
    assert {part: counts["listed"] for part, counts in other.items()} == {"train": 18, "val": 3, "test": 3}


def test_missing_and_broken_clips_are_reported_one_by_one(copy: Archive) -> None:
    assert copy.said[2:5] == [
        "public train: 15 clips expected, 14 found, 2 of them with faults",
        "public val: 3 clips expected, 3 found, 0 of them with faults",
        "public test: 6 clips expected, 6 found, 2 of them with faults",
    ]
    reported = {line.partition(" ")[0]: line for line in copy.said[8:-2]}
    assert sorted(reported) == sorted(name(n) for n in (MISSING, MUTE, TORN, MUTE_TEST, BLIND_TEST))
    endings = {
        MISSING: "): no file",
        MUTE: "): audio no sound track; not trained on",
        MUTE_TEST: "): audio no sound track; not trained on",
        TORN: "): video unreadable (InvalidDataError); audio unreadable (InvalidDataError); not used",
        BLIND_TEST: "; not trained on",
    }
    assert {n: reported[name(n)][-len(ending) :] for n, ending in endings.items()} == endings
    assert all("(public train, " in reported[name(n)] for n in (MISSING, MUTE, TORN))
    assert copy.said[-2] == "split public: train 12, val 3, test 6"


def test_a_clip_without_sound_is_dropped_from_training_and_silent_in_the_other_parts(copy: Archive) -> None:
    index, audio = copy.prepared.index, copy.prepared.array("audio")
    assert index.parts["public"][row(copy, MUTE)] == ""
    assert index.parts["public"][row(copy, MUTE_TEST)] == "test"
    silence = filter_bank(Sound(np.zeros(round(SECONDS * 16_000), np.float32), 16_000))
    assert np.array_equal(audio[row(copy, MUTE_TEST)], silence)
    assert silence.min() < -10
    assert all(parts[row(copy, n)] in ("", "val", "test") for parts in index.parts.values() for n in (MUTE, MUTE_TEST))


def test_a_torn_clip_is_in_no_part_and_one_with_a_whole_copy_beside_it_is_used(copy: Archive) -> None:
    index, video = copy.prepared.index, copy.prepared.array("video")
    assert {parts[row(copy, TORN)] for parts in index.parts.values()} == {""}
    assert not video[row(copy, TORN)].any()
    assert index.parts["public"][row(copy, REPLACED)] == "train"
    assert video[row(copy, REPLACED)].any()
    assert decode([*(copy.raw / "clips").rglob(f"{youtube(REPLACED)}*")]).faults == []


def test_the_sound_is_the_first_track_of_the_video_at_16_khz(copy: Archive) -> None:
    for number in (0, 8, 16):
        expected = filter_bank(Sound(tone(number // 8, SECONDS, 16_000), 16_000)).astype(float)[0, 20:60].mean(axis=0)
        found = copy.prepared.array("audio")[row(copy, number)].astype(float)[0, 20:60].mean(axis=0)
        assert abs(found.argmax() - expected.argmax()) <= 1
        assert not copy.prepared.array("audio")[row(copy, number), 0, 100:].any()


def test_no_video_is_in_two_parts(copy: Archive) -> None:
    for parts in copy.prepared.index.parts.values():
        members = [{n[:11] for n, own in zip(copy.prepared.index.ids, parts, strict=True) if own == p} for p in PARTS]
        assert sum(map(len, members)) == len(set.union(*members))
        assert all(members)


def test_without_clips_fetching_says_where_they_are_to_be_had_and_to_be_put(copy: Archive, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "k400_val_path.txt").touch()
    with pytest.raises(
        DataError,
        match=r"kinetics_sounds: clips has to be brought by hand \(clips/\*\*/\*\.mp4 is missing\)\. clips is a folder "
        r"of the mp4 files of Kinetics-400 .*k400_train_path\.txt .* Put it into .* run `equipoise fetch kinetics_",
    ):
        fetch(KineticsSounds, tmp_path, copy.home / "mirror")
    assert (tmp_path / "KS_train_val.json").is_file()


def test_a_part_without_a_single_clip_stops_the_preparation_before_anything_is_decoded(
    copy: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw" / "kinetics_sounds"
    raw.mkdir(parents=True)
    (raw / "KS_train_val.json").write_bytes((copy.raw / "KS_train_val.json").read_bytes())
    (raw / "clips").mkdir()
    (raw / "clips" / f"{youtube(0)}_000000_000010.mp4").write_bytes(b"never read")
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    monkeypatch.setattr("datasets._clips.pool.decode_all", None)
    with pytest.raises(
        DataError,
        match=r"of the 1 listed clips found below .*clips none can be used in test and val of split 'public'\. clips "
        r"is a folder .* Then run `equipoise prepare kinetics_sounds`",
    ):
        prepare("kinetics_sounds", say=lambda _: None)


def test_augmentation_repeats_with_its_generator_and_leaves_the_sound_alone() -> None:
    inputs = {"audio": torch.rand(4, 1, 1024, 128), "video": torch.rand(4, 3, 3, 224, 224)}
    first, again, other = (KineticsSounds().augment(inputs, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first["video"], again["video"])
    assert not torch.equal(first["video"], other["video"])
    assert first["audio"] is inputs["audio"]


class Tiny(nn.Module):
    """Means over a grid of 4 x 4 cells (and over frames), then one layer."""

    width = 16

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(shape[0] * 16, self.width)

    def forward(self, inputs: Tensor) -> Tensor:
        frames = inputs.mean(dim=2) if inputs.ndim == 5 else inputs
        return torch.relu(self.layer(nn.functional.adaptive_avg_pool2d(frames, 4).flatten(1)))


@pytest.mark.usefixtures("copy")
@pytest.mark.parametrize("split", ["public", "rgm-like"])
def test_an_epoch_of_joint_training_runs_on_prepared_clips(split: str) -> None:
    data = load("kinetics_sounds", split)
    task = Task(
        shapes=dict(data.shapes),
        classes=len(data.classes),
        epochs=1,
        backbone=lambda _modality, shape: Tiny(shape),
    )
    protocol = Protocol(epochs=1, batch_size=8, optimizer=Optimizer(lr=0.01))
    found = fit(Joint(Joint.Options(), task), data.parts, protocol, seed=0)
    assert found.steps == math.ceil(len(data.parts["train"]) / 8)
    assert math.isfinite(found.epochs[0]["loss"])


def test_preparing_depends_on_every_source_of_the_dataset() -> None:
    folder = Path(datasets.kinetics_sounds.__file__).parent
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    sources = {str(file.relative_to(folder.parents[1])) for file in DATASETS.entry("kinetics_sounds").source_files()}
    assert set(stages["prepare"]["deps"]) == {*sources, "data/raw/kinetics_sounds"}
