from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from baselines.joint import Joint
from benchmark.conformance_dataset import check_dataset
from benchmark.conformance_trial import Outcome
from benchmark.data import load
from benchmark.dataset import PARTS
from benchmark.download import Patience
from benchmark.errors import DataError
from benchmark.fetch import fetch
from benchmark.paths import SOURCE_ROOT
from benchmark.protocol import Optimizer, Protocol
from benchmark.registry import DATASETS
from benchmark.task import Task
from benchmark.training import fit
from datasets.cremad import CLIPS, CREMAD
from datasets.cremad.clips import actor, clean_parts, decode, emotion, legacy_parts, read_list, shared_recordings
from tests.datasets.archives import Archive, archive_of
from tests.datasets.lookalikes import pitch


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with archive_of(CREMAD, tmp_path_factory.mktemp("cremad")) as found:
        yield found


def real_names() -> list[str]:
    return sorted(Path(path).stem for path in CLIPS.files if path.startswith("VideoFlash/"))


def test_the_real_manifest_names_a_video_and_a_recording_of_7442_clips() -> None:
    names = real_names()
    assert len(CLIPS.files) == 2 * len(names) == 14_884
    assert {f"AudioWAV/{name}.wav" for name in names} | {f"VideoFlash/{name}.flv" for name in names} == set(CLIPS.files)
    assert sum(checksum.size or 0 for checksum in CLIPS.files.values()) == 3_048_921_077
    assert len({actor(name) for name in names}) == 91
    assert Counter(map(emotion, names)) == {**dict.fromkeys(CREMAD.card.classes, 1271), "NEU": 1087}


def test_three_recordings_of_the_real_manifest_are_there_twice_under_different_labels() -> None:
    same = shared_recordings(CLIPS.files)
    assert {frozenset(pair) for pair in same.items()} == {
        frozenset({"1006_TIE_HAP_XX", "1006_TIE_NEU_XX"}),
        frozenset({"1013_WSI_DIS_XX", "1013_WSI_SAD_XX"}),
        frozenset({"1017_IWW_ANG_XX", "1017_IWW_FEA_XX"}),
    }
    assert all(emotion(name) != emotion(other) for name, other in same.items())


def test_the_clean_split_keeps_63_9_and_19_actors_apart_on_every_platform() -> None:
    names = real_names()
    parts = clean_parts(names)
    actors = defaultdict(set)
    for name, part in zip(names, parts, strict=True):
        actors[part].add(actor(name))
    assert {part: len(members) for part, members in actors.items()} == {"train": 63, "val": 9, "test": 19}
    assert len(set.union(*actors.values())) == 91
    assert Counter(parts) == {"train": 5153, "val": 737, "test": 1552}
    digest = hashlib.sha256(",".join(parts).encode()).hexdigest()
    assert digest == "40c9b6492acc89f0c86b10e4c7f2a492364cf3ca95d430545034b3b960e52c0a"


def test_the_legacy_split_is_the_published_lists_with_validation_cut_out_of_training() -> None:
    assert legacy_parts(["a", "b", "c"], val={"b"}, test={"c"}) == ["train", "val", "test"]


def test_lists_are_read_with_either_line_end(tmp_path: Path) -> None:
    for number, end in enumerate((b"\n", b"\r\n")):
        (tmp_path / f"{number}.csv").write_bytes(b"1001_DFA_ANG_XX,ANG" + end + b"1002_DFA_SAD_XX,SAD" + end)
        assert read_list(tmp_path / f"{number}.csv") == {"1001_DFA_ANG_XX", "1002_DFA_SAD_XX"}


def test_every_clip_and_list_is_fetched_from_a_mirror_and_verified(archive: Archive) -> None:
    assert [str(found) for found in archive.found] == [
        "clips: 96 expected, 96 found, 0 broken",
        *(f"{part}.csv: 1 expected, 1 found, 0 broken" for part in PARTS),
    ]


def test_prepared_arrays_hold_three_frames_and_a_spectrogram_of_every_clip(archive: Archive) -> None:
    video, audio = archive.prepared.array("video"), archive.prepared.array("audio")
    assert (video.shape, video.dtype.name) == ((48, 3, 3, 224, 224), "uint8")
    assert (audio.shape, audio.dtype.name) == ((48, 1, 257, 188), "float16")
    assert archive.prepared.index.ids == archive.lookalike.names
    counts = {name: split.counts for name, split in archive.prepared.meta.splits.items()}
    assert counts["legacy"] == {"train": 36, "val": 6, "test": 6}
    assert counts["clean"] == {"train": 24, "val": 12, "test": 12}


def test_pitch_and_colour_are_those_of_the_label(archive: Archive) -> None:
    index = archive.prepared.index
    whole = [n for n, name in enumerate(index.ids) if not name.startswith("1001_DFA")]
    for number in whole:
        loudest = archive.prepared.array("audio")[number, 0].astype(float).mean(axis=1).argmax() * 22_050 / 512
        assert abs(loudest - pitch(index.labels[number])) < 22_050 / 512
    colours = archive.prepared.array("video")[whole].astype(float).mean(axis=(2, 3, 4))
    centres = np.stack([colours[index.labels[whole] == label].mean(axis=0) for label in range(6)])
    nearest = np.linalg.norm(colours[:, None] - centres, axis=2).argmin(axis=1)
    assert nearest.tolist() == index.labels[whole].tolist()


def test_no_clip_is_in_two_parts_and_no_actor_in_two_of_the_clean_split(archive: Archive) -> None:
    index = archive.prepared.index
    for split, parts in index.parts.items():
        members = {part: {name for name, own in zip(index.ids, parts, strict=True) if own == part} for part in PARTS}
        assert sum(map(len, members.values())) == len(set.union(*members.values())) == 48
        actors = [{actor(name) for name in names} for names in members.values()]
        assert (len(set.union(*actors)) == sum(map(len, actors))) is (split == "clean")


def test_every_fault_is_reported_and_its_clip_is_kept(archive: Archive) -> None:
    assert archive.said[4:15] == [
        "legacy train: 36 clips expected, 36 found, 6 of them with faults",
        "legacy val: 6 clips expected, 6 found, 0 of them with faults",
        "legacy test: 6 clips expected, 6 found, 0 of them with faults",
        *archive.said[7:10],
        "1001_DFA_ANG_XX (legacy train, clean train): video 1 frame instead of at least 3",
        "1001_DFA_DIS_XX (legacy train, clean train): video unreadable (InvalidDataError)",
        "1001_DFA_FEA_XX (legacy train, clean train): audio silent",
        "1001_DFA_HAP_XX (legacy train, clean train): audio is that of 1001_DFA_NEU_XX",
        "1001_DFA_NEU_XX (legacy train, clean train): audio is that of 1001_DFA_HAP_XX",
    ]
    video, audio = archive.prepared.array("video"), archive.prepared.array("audio")
    assert np.array_equal(video[0, :, 0], video[0, :, 2])
    assert video[0].any()
    assert not video[1].any()
    assert np.unique(audio[2]).tolist() == [np.float16(np.log(1e-7))]
    assert np.array_equal(audio[3], audio[4])


def test_a_video_much_longer_than_its_recording_is_a_fault(archive: Archive) -> None:
    assert archive.said[15].startswith("1001_DFA_SAD_XX (legacy train, clean train): video of 1.5 s beside a recording")
    assert decode(archive.raw, CREMAD.rate, "1004_IEO_SAD_XX").faults == []


def test_a_pointer_in_the_place_of_a_clip_is_named(archive: Archive, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror" / "cremad"
    shutil.copytree(archive.lookalike.folder, mirror)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (mirror / "AudioWAV" / "1001_DFA_ANG_XX.wav").write_bytes(pointer)
    with pytest.raises(DataError, match=r"1001_DFA_ANG_XX\.wav: 64 bytes instead of \d+, a Git LFS pointer"):
        fetch(CREMAD, tmp_path / "raw", tmp_path / "mirror", patience=Patience(attempts=1, wait=0.0))


def test_the_docstring_warns_that_all_actors_are_on_both_sides() -> None:
    text = " ".join((CREMAD.__doc__ or "").split())
    assert "it is NOT speaker-independent: all 91 actors are in training, validation and test" in text


def test_augmentation_repeats_with_its_generator_and_leaves_the_sound_alone() -> None:
    inputs = {"audio": torch.rand(8, 1, 257, 188), "video": torch.rand(8, 3, 3, 224, 224)}
    first, again, other = (CREMAD().augment(inputs, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first["video"], again["video"])
    assert not torch.equal(first["video"], other["video"])
    assert first["audio"] is inputs["audio"]


def test_augmentation_gives_all_frames_of_a_sample_the_same_crop_and_samples_different_ones() -> None:
    frame = torch.rand(1, 3, 1, 224, 224)
    found = CREMAD().augment({"video": frame.expand(6, 3, 3, 224, 224)}, torch.Generator().manual_seed(0))["video"]
    assert torch.equal(found[:, :, 0], found[:, :, 1])
    assert torch.equal(found[:, :, 0], found[:, :, 2])
    assert all(not torch.equal(found[n], found[0]) for n in range(1, 6))


class Tiny(nn.Module):
    """Means over a grid of 4 x 4 cells (and over frames), then one layer."""

    width = 16

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(shape[0] * 16, self.width)

    def forward(self, inputs: Tensor) -> Tensor:
        frames = inputs.mean(dim=2) if inputs.ndim == 5 else inputs
        return torch.relu(self.layer(nn.functional.adaptive_avg_pool2d(frames, 4).flatten(1)))


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("split", ["legacy", "clean"])
def test_an_epoch_of_joint_training_runs_on_prepared_clips_without_any_decoder(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for decoder in ("av", "soundfile", "torchaudio"):
        monkeypatch.setitem(sys.modules, decoder, None)
    data = load("cremad", split)
    task = Task(
        shapes=dict(data.shapes),
        classes=len(data.classes),
        epochs=1,
        backbone=lambda _modality, shape: Tiny(shape),
    )
    protocol = Protocol(epochs=1, batch_size=8, optimizer=Optimizer(lr=0.01))
    first, again = (fit(Joint(Joint.Options(), task), data.parts, protocol, seed=0) for _ in range(2))
    assert first.steps == math.ceil(len(data.parts["train"]) / 8)
    assert math.isfinite(first.epochs[0]["loss"])
    assert first.epochs == again.epochs


def test_preparing_depends_on_every_source_of_the_dataset() -> None:
    stages = yaml.safe_load((SOURCE_ROOT / "datasets/cremad/dvc.yaml").read_text())["stages"]
    sources = {str(file.relative_to(SOURCE_ROOT)) for file in DATASETS.entry("cremad").source_files()}
    assert set(stages["prepare"]["deps"]) == {*sources, "data/raw/cremad"}


@pytest.mark.usefixtures("archive")
def test_the_prepared_look_alike_conforms_in_both_splits() -> None:
    records = list(check_dataset("cremad"))
    assert [record.reason for record in records if record.outcome is not Outcome.PASSED] == []
    assert len(records) == 10


def test_what_listing_and_each_decoding_process_import_is_light() -> None:
    code = (
        "import sys, datasets.cremad, datasets.cremad.clips, datasets._clips.pool; "
        "print(sorted({'av', 'scipy', 'soundfile', 'torch', 'torchaudio', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=SOURCE_ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
