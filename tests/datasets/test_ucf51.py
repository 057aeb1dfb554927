from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from baselines.joint import Joint
from benchmark.conformance_dataset import CHECKS
from benchmark.data import load
from benchmark.dataset import PARTS
from benchmark.errors import DataError
from benchmark.paths import SOURCE_ROOT
from benchmark.protocol import Optimizer, Protocol
from benchmark.registry import DATASETS
from benchmark.task import Task
from benchmark.training import fit
from datasets._clips.archives import read_tar, read_zip
from datasets._clips.frames import STILL
from datasets.ucf51 import UCF51
from datasets.ucf51.clips import Note, all_faults, crashed_flow, crashed_video, decode_flow, flow_files
from datasets.ucf51.lists import PAPER_GROUPS, group, group_parts, read_lists, shuffled_parts
from tests.datasets.archives import Archive, archive_of
from tests.datasets.lookalikes import write_zip
from tests.datasets.ucf51_lookalike import (
    CLASSES,
    MOTION,
    TRUNCATED,
    WITHOUT_FLOW,
    WITHOUT_VIDEO,
    gray_video,
    write_tar,
)

# Clips of the 51 classes in groups 1 to 25, counted in the official lists.
CLIPS_OF_GROUP = [
    *(270, 269, 270, 269, 283, 295, 288, 276, 289, 288, 271, 273, 252),
    *(266, 281, 268, 271, 278, 262, 280, 260, 273, 272, 262, 279),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with archive_of(UCF51, tmp_path_factory.mktemp("ucf51")) as found:
        yield found


def parts_of(archive: Archive, split: str) -> dict[str, str]:
    """Return every clip's part."""
    return dict(zip(archive.prepared.index.ids, archive.prepared.index.parts[split], strict=True))


def real_names() -> list[str]:
    counts = enumerate(CLIPS_OF_GROUP, start=1)
    return [f"v_Any_g{number:02}_c{clip:03}" for number, count in counts for clip in range(count)]


def test_the_card_has_51_classes_in_the_order_of_ucf101() -> None:
    assert len(set(UCF51.card.classes)) == 51
    assert list(UCF51.card.classes) == sorted(UCF51.card.classes, key=str.lower)


def test_the_real_groups_give_the_published_sizes_of_every_split() -> None:
    names = real_names()
    official = group_parts(names, {name for name in names if group(name) <= 7})
    paper = group_parts(names, {name for name in names if group(name) in PAPER_GROUPS})
    assert Counter(official) == {"train": 4901 - 541, "val": 541, "test": 1944}
    assert Counter(paper) == {"train": 5466 - 541, "val": 541, "test": 1379}
    assert Counter(shuffled_parts(names)) == Counter(paper)


def test_parts_of_the_two_group_splits_share_no_group_and_those_of_the_shuffled_one_share_all() -> None:
    names = real_names()
    for parts, shared in (
        (group_parts(names, {name for name in names if group(name) <= 7}), 0),
        (group_parts(names, {name for name in names if group(name) in PAPER_GROUPS}), 0),
        (shuffled_parts(names), 25),
    ):
        groups = {part: {group(name) for name, own in zip(names, parts, strict=True) if own == part} for part in PARTS}
        assert len(groups["train"] & groups["test"]) == len(groups["train"] & groups["val"]) == shared
        assert len(set.union(*groups.values())) == 25


def test_lists_give_the_clips_of_the_51_classes_with_the_class_of_their_folder(archive: Archive) -> None:
    raw = archive.lookalike.folder / "UCF101TrainTestSplits-RecognitionTask.zip"
    train, test = read_lists(raw, CLASSES)
    assert sorted(train | test) == list(archive.lookalike.names)
    assert (len(train), len(test)) == (12, 6)
    assert test["v_HandStandPushups_g01_c02"] == CLASSES.index("HandstandPushups")
    assert read_lists(raw, ["handSTANDpushups"])[1] == {f"v_HandStandPushups_g01_c0{n}": 0 for n in (1, 2)}


def test_an_archive_without_the_lists_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "lists.zip", {"ucfTrainTestlist/trainlist01.txt": b""})
    with pytest.raises(DataError, match=r"lists\.zip lacks testlist01\.txt"):
        read_lists(tmp_path / "lists.zip", CLASSES)


@pytest.mark.parametrize(
    ("write", "read"),
    [(write_zip, lambda file: read_zip(file, ["a"])), (write_tar, lambda file: read_tar(file, ["a"]))],
)
@pytest.mark.parametrize("member", ["../a", "/a", "b/../../a"])
def test_a_member_outside_its_folder_is_refused(
    tmp_path: Path,
    write: Callable[[Path, dict[str, bytes]], None],
    read: Callable[[Path], Iterator[object]],
    member: str,
) -> None:
    write(tmp_path / "archive", {member: b"x"})
    with pytest.raises(DataError, match=r"archive is refused: its member .* points outside the folder"):
        list(read(tmp_path / "archive"))


def test_members_are_found_in_any_folder_and_spelling_and_the_others_are_left_out(tmp_path: Path) -> None:
    members = {"top/V_b.avi": b"B", "A.avi": b"A", "top/c.avi": b"C"}
    write_zip(tmp_path / "a.zip", members)
    write_tar(tmp_path / "a.tar.gz", members)
    assert list(read_zip(tmp_path / "a.zip", ["a.avi", "x.avi", "v_B.avi"])) == [b"A", None, b"B"]
    assert list(read_tar(tmp_path / "a.tar.gz", ["a.avi", "x.avi", "v_B.avi"])) == [("v_B.avi", b"B"), ("a.avi", b"A")]


def test_every_clip_gets_its_flow_once_whatever_the_order_and_whatever_is_missing(tmp_path: Path) -> None:
    members = {f"{clip}_flow_{axis}.mp4": f"{clip}{axis}".encode() for clip, axis in ("bx", "ax", "ay", "by", "cy")}
    write_tar(tmp_path / "flow.tar.gz", members)
    assert list(flow_files(tmp_path / "flow.tar.gz", "abcd")) == [
        ("a", {"x": b"ax", "y": b"ay"}),
        ("b", {"x": b"bx", "y": b"by"}),
        ("c", {"y": b"cy"}),
        ("d", {}),
    ]


def test_flow_is_indexed_by_position_and_keeps_its_levels() -> None:
    ramp = [40 + 4 * number for number in range(31)]
    found = decode_flow(("clip", {"x": gray_video(ramp), "y": gray_video(ramp[::-1])}))
    assert found.note.faults == ()
    assert found.note.seconds == pytest.approx(31 / 24, abs=0.001)
    # Middles of the thirds of 31 pairs: within the 6th, 16th and 26th.
    for images, levels in zip(found.images, (ramp, ramp[::-1]), strict=True):
        assert np.abs(images.mean(axis=(1, 2)) - [levels[n] for n in (5, 15, 25)]).max() <= 1


def test_flow_of_a_single_pair_is_repeated_and_said() -> None:
    found = decode_flow(("clip", {"x": gray_video([168]), "y": gray_video([128])}))
    assert found.note.faults == tuple(f"{name} 1 frame instead of at least 3" for name in "uv")
    assert np.array_equal(found.images[:, 0], found.images[:, 2])


def test_flow_that_cannot_be_decoded_is_no_motion_and_said() -> None:
    found = decode_flow(("clip", {"x": b"no video"}))
    assert found.note.faults == ("u unreadable (InvalidDataError)", "v no file")
    assert (found.images == STILL).all()


def test_a_clip_that_takes_the_decoder_down_is_black_and_without_motion() -> None:
    video, flow = crashed_video(("clip", b"")), crashed_flow(("clip", {}))
    assert (video.images.shape, flow.images.shape) == ((3, 3, 224, 224), (2, 3, 224, 224))
    assert not video.images.any()
    assert (flow.images == STILL).all()
    assert all_faults(video.note, flow.note) == ["video takes the decoder down", "flow takes the decoder down"]


@pytest.mark.parametrize(("seconds", "faults"), [(25 / 24, 0), (25 / 30, 0), (0.6, 1), (1.6, 1), (0.0, 0)])
def test_a_video_much_longer_or_shorter_than_its_flow_is_a_fault(seconds: float, faults: int) -> None:
    assert len(all_faults(Note("clip", seconds), Note("clip", 1.0))) == faults


def test_every_archive_is_fetched_whole_from_a_mirror(archive: Archive) -> None:
    assert [str(found).partition(":")[2] for found in archive.found] == [" 1 expected, 1 found, 0 broken"] * 3


def test_prepared_arrays_hold_three_frames_and_flow_pairs_of_every_listed_clip(archive: Archive) -> None:
    for modality, channels in (("video", 3), ("flow", 2)):
        array = archive.prepared.array(modality)
        assert (array.shape, array.dtype.name) == ((18, channels, 3, 224, 224), "uint8")
    assert archive.prepared.index.ids == archive.lookalike.names
    counts = {name: split.counts for name, split in archive.prepared.meta.splits.items()}
    assert counts["official1"] == counts["paper-size"] == {"train": 6, "val": 6, "test": 6}
    assert counts["random80"] == {"train": 14, "val": 1, "test": 3}
    for split in ("official1", "paper-size"):
        assert {(group(name), part) for name, part in parts_of(archive, split).items()} == {
            (1, "test"),
            (8, "train"),
            (24, "val"),
        }


def test_colour_and_motion_are_those_of_the_label(archive: Archive) -> None:
    index = archive.prepared.index
    for name, label in zip(index.ids, index.labels, strict=True):
        motion = (STILL, STILL) if name == WITHOUT_FLOW else MOTION[label]
        assert np.abs(archive.row("flow", name).mean(axis=(1, 2, 3)) - motion).max() <= 1
        colours = archive.row("video", name).mean(axis=(1, 2, 3))
        assert name == WITHOUT_VIDEO or colours.argmax() == label  # red, green and blue


def test_every_fault_is_reported_and_its_clip_is_kept(archive: Archive) -> None:
    start = archive.said.index("flow: median level 128, 128 is no motion")
    assert archive.said[start + 1 : start + 4] == [
        "official1 train: 6 clips expected, 5 found, 2 of them with faults",
        "official1 val: 6 clips expected, 6 found, 0 of them with faults",
        "official1 test: 6 clips expected, 6 found, 0 of them with faults",
    ]
    truncated, without_flow, without_video, *splits = archive.said[start + 10 :]
    where = "(official1 train, paper-size train, random80 train)"
    elsewhere = where.replace("random80 train", "random80 test")
    assert truncated.startswith(f"{TRUNCATED} {where}: video ")
    assert re.search(r"video of 0\.\d s beside flow of 1\.3 s$", truncated)
    assert without_flow == f"{WITHOUT_FLOW} {elsewhere}: flow u no file; flow v no file"
    assert without_video == f"{WITHOUT_VIDEO} {where}: no file"
    assert all(line.startswith("split ") for line in splits)
    assert archive.row("video", TRUNCATED).any()
    assert not archive.row("video", WITHOUT_VIDEO).any()
    assert (archive.row("flow", WITHOUT_FLOW) == STILL).all()


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("split", UCF51.card.splits)
def test_no_motion_is_zero_and_motion_keeps_its_sign_after_normalisation(split: str) -> None:
    still = 0
    for part in load("ucf51", split).parts.values():
        (batch,) = part.batches(32)
        motion = batch.inputs["flow"].mean(dim=(2, 3, 4))
        signs = torch.where(motion.abs() > 0.1, motion.sign(), 0.0)
        moving = signs.any(dim=1)
        assert torch.equal(signs[moving], torch.tensor([[1.0, 0], [-1, 0], [0, 1]])[batch.labels[moving]])
        assert not batch.inputs["flow"][~moving].any()
        still += int((~moving).sum())
    assert still == 1


def test_a_mirrored_sample_is_mirrored_in_every_stream_and_moves_the_other_way() -> None:
    ramp = torch.linspace(-1, 1, 224).expand(32, 3, 3, 224, 224)
    motion = torch.tensor([0.7, 0.4]).view(1, 2, 1, 1, 1).expand(32, 2, 3, 224, 224)
    found = UCF51().augment({"video": ramp, "flow": motion}, torch.Generator().manual_seed(0))
    mirrored = found["video"][:, 0, 0, 0, 0] > found["video"][:, 0, 0, 0, -1]
    assert 0 < mirrored.sum() < 32
    assert torch.allclose(found["flow"][:, 0], torch.where(mirrored, -0.7, 0.7).view(-1, 1, 1, 1))
    assert torch.allclose(found["flow"][:, 1], torch.tensor(0.4))


def test_augmentation_gives_flow_and_frames_of_a_sample_the_same_crop() -> None:
    picture = torch.rand(1, 1, 1, 224, 224, generator=torch.Generator().manual_seed(1))
    inputs = {"video": picture.expand(6, 3, 3, 224, 224), "flow": picture.expand(6, 2, 3, 224, 224)}
    found, again = (UCF51().augment(inputs, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(found["flow"][:, 1], found["video"][:, 0])
    assert torch.equal(found["flow"][:, 0].abs(), found["video"][:, 0])
    assert not torch.equal(found["video"][0], found["video"][1])
    assert all(torch.equal(found[name], again[name]) for name in found)


class Tiny(nn.Module):
    """Means over the frames and a grid of 4 x 4 cells, then one layer."""

    width = 16

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(shape[0] * 16, self.width)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.layer(nn.functional.adaptive_avg_pool2d(inputs.mean(dim=2), 4).flatten(1)))


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("split", UCF51.card.splits)
def test_an_epoch_of_joint_training_runs_on_prepared_clips_without_any_decoder(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    data = load("ucf51", split)
    task = Task(shapes=dict(data.shapes), classes=3, epochs=1, backbone=lambda _modality, shape: Tiny(shape))
    protocol = Protocol(epochs=1, batch_size=4, optimizer=Optimizer(lr=0.01))
    first, again = (fit(Joint(Joint.Options(), task), data.parts, protocol, seed=0) for _ in range(2))
    assert first.steps == math.ceil(len(data.parts["train"]) / 4)
    assert math.isfinite(first.epochs[0]["loss"])
    assert first.epochs == again.epochs


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("split", ["official1", "paper-size"])
def test_the_prepared_look_alike_conforms(split: str) -> None:
    data = load("ucf51", split)
    assert {name: check(data) for name, check in CHECKS.items()} == dict.fromkeys(CHECKS, "")


def test_preparing_depends_on_every_source_of_the_dataset() -> None:
    stages = yaml.safe_load((SOURCE_ROOT / "datasets/ucf51/dvc.yaml").read_text())["stages"]
    sources = {str(file.relative_to(SOURCE_ROOT)) for file in DATASETS.entry("ucf51").source_files()}
    assert set(stages["prepare"]["deps"]) == {*sources, "data/raw/ucf51"}


def test_what_listing_and_each_decoding_process_import_is_light() -> None:
    code = (
        "import sys, datasets.ucf51; "
        "print(sorted({'av', 'scipy', 'soundfile', 'torch', 'torchaudio', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=SOURCE_ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
