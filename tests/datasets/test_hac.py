from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmark.conformance_dataset import check_dataset
from benchmark.conformance_trial import Outcome
from benchmark.data import load
from benchmark.dataset import PARTS
from benchmark.download import Patience
from benchmark.errors import DataError
from benchmark.fetch import fetch
from benchmark.paths import SOURCE_ROOT
from benchmark.protocol import Cell, Optimizer, Protocol
from benchmark.registry import DATASETS
from benchmark.run import run_cell
from datasets._clips.frames import STILL
from datasets._clips.windows import crashed
from datasets.hac import HAC
from datasets.hac.clips import decode, numbers, read_files
from datasets.hac.lists import domain_parts, origin, read_list, read_lists
from datasets.hac_flow import HACFlow
from tests.datasets.archives import Archive, archive_of
from tests.datasets.cells import tiny_backbone
from tests.datasets.hac_lookalike import (
    BLUE,
    CLASSES,
    DOMAINS,
    FRAMES,
    LONG_CLIP,
    MOTION,
    SHADE,
    SHORT_CLIP,
    TWICE,
    WITHOUT_SOUND,
    WITHOUT_VIDEO,
    names,
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with archive_of(HACFlow, tmp_path_factory.mktemp("hac")) as found:
        yield found


def clips() -> list[tuple[str, int, int]]:
    """Return id, class and place in the lists of every clip: 0 and 1 are for training."""
    return [
        (f"{domain}/{name}", label, place)
        for domain in DOMAINS
        for label in range(3)
        for place, name in enumerate(names(domain, label))
    ]


def test_a_clip_of_a_test_clips_video_is_in_no_part_of_official_and_trained_on_in_legacy(tmp_path: Path) -> None:
    lists = {
        "train": {"-hAno2-MdLY-006": 3, "JYFIV5NV7m4-005": 3, "-hAno2-MdL_-006": 3, "drinking_5": 3, "drinking_7": 3},
        "test": {"-hAno2-MdLY-001": 3, "JYFIV5NV7m4-001": 3, "drinking_6": 3, "drinking_7": 3},
    }
    for part, rows in lists.items():
        file = tmp_path / f"HAC_{part}_only_animal.csv"
        file.write_text("".join(f"{name}.mp4,{label}\n" for name, label in rows.items()))
    listed, _ = read_lists(tmp_path, ("animal",), 7)
    assert {clip.name for clip in listed if clip.part == ""} == {"-hAno2-MdLY-006", "JYFIV5NV7m4-005"}
    assert {clip.legacy for clip in listed if not clip.part} == {"train"}
    assert all(clip.legacy == clip.part for clip in listed if clip.part)
    assert {clip.name for clip in listed if clip.part == "test"} == set(lists["test"])


def test_the_published_lists_have_1387_906_and_1088_rows() -> None:
    sizes = {source.file: source.checksum.size for source in HAC.card.sources if source.checksum}
    assert len(sizes) == 9
    assert [file for file, size in sizes.items() if size is None] == ["human.zip", "animal.zip", "cartoon.zip"]


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("-hAno2-MdLY-001", "-hAno2-MdLY"),
        ("kR72vW_PeUQ_000000_000010", "kR72vW_PeUQ"),
        ("door_opening_1", "door_opening_1"),
        ("drinking_54 ", "drinking_54 "),
    ],
)
def test_a_clip_that_is_named_after_a_youtube_video_was_cut_from_it(name: str, video: str) -> None:
    assert origin(name) == video


def test_validation_is_a_fifth_of_every_class_and_shares_no_video_with_training() -> None:
    train = {f"{'abcdefghijk'[number % 7 :]:x<11}-{number:03d}": number % 7 for number in range(210)}
    train |= {f"eating_{number}": 2 for number in range(100)}
    parts = domain_parts("animal", train, {"eating_1": 2, "eating_200": 2})
    assert (parts["eating_1"], parts["eating_200"]) == ("test", "test")
    videos = {part: {origin(name) for name, own in parts.items() if own == part} for part in PARTS}
    assert not videos["train"] & videos["val"]
    eating = Counter(parts[name] for name in parts if name.startswith("eating"))
    assert eating["val"] == math.floor(0.2 * (30 + 99))
    assert parts == domain_parts("animal", dict(reversed(train.items())), {"eating_200": 2, "eating_1": 2})


def test_validation_differs_between_domains_whose_clips_have_the_same_names() -> None:
    train = {f"eating_{number}": 0 for number in range(100)}
    first, second = (domain_parts(domain, train, {}) for domain in ("animal", "cartoon"))
    assert Counter(first.values()) == Counter(second.values()) == {"train": 80, "val": 20}
    assert first != second


@pytest.mark.parametrize("row", ["clip.avi,0", "clip.mp4", "clip.mp4,7", "clip.mp4,x"])
def test_a_row_that_is_no_clip_and_class_is_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "list.csv").write_text(f"a.mp4,6\n{row}\n")
    with pytest.raises(DataError, match=r"list\.csv: row '.*' is no clip and class below 7"):
        read_list(tmp_path / "list.csv", 7)


def test_a_clip_of_two_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "HAC_train_only_human.csv").write_text("a.mp4,0\n")
    (tmp_path / "HAC_test_only_human.csv").write_text("a.mp4,1\n")
    with pytest.raises(DataError, match="a of human is of class 0 in the training and of class 1 in the test list"):
        read_lists(tmp_path, ("human",), 7)


def test_a_window_is_every_second_frame_of_the_middle_64_counted_as_the_released_code_does() -> None:
    assert numbers(241) == [87 + 2 * n for n in range(32)]  # of 240 frames 88 to 150, counted from 1
    assert numbers(65) == [0, *range(1, 62, 2)]
    # Of 39 it goes on from the beginning: 0, 2, .. 38, then 1, 3, ..
    assert numbers(40) == [0, *range(1, 38, 2), *range(0, 23, 2)]
    assert numbers(1) == numbers(0) == [0] * 32


def test_archives_without_a_published_checksum_are_pinned_when_they_are_fetched(archive: Archive) -> None:
    assert [str(found).partition(":")[2] for found in archive.found] == [" 1 expected, 1 found, 0 broken"] * 9
    pin = archive.raw / "human.zip.sha256"
    assert len(pin.read_text().strip()) == 64
    (archive.home / "elsewhere").mkdir()
    (archive.home / "elsewhere" / "animal.zip").write_bytes(b"another")
    with pytest.raises(DataError, match=r"animal\.zip could not be fetched .*animal\.zip: 7 bytes instead of"):
        fetch(with_sources("animal.zip"), archive.home / "elsewhere", patience=Patience(1, 0.0))


def with_sources(*files: str) -> type[HAC]:
    sources = tuple(source for source in HAC.card.sources if source.file in files)
    return type("Some", (HAC,), {"card": replace(HAC.card, sources=sources)})


def test_arrays_hold_a_window_of_every_clip_of_every_domain(archive: Archive) -> None:
    index = archive.prepared.index
    assert sorted(index.ids) == sorted(clip for clip, _, _ in clips())
    expected = {"audio": ((1, 257, 1004), "float16"), "video": ((3, 8, 56, 56), "uint8")}
    expected["flow"] = ((2, 8, 56, 56), "uint8")
    for modality, (shape, dtype) in expected.items():
        array = archive.prepared.array(modality)
        assert (array.shape, array.dtype.name) == ((27, *shape), dtype)
    assert index.domains is not None
    assert [DOMAINS[number] for number in index.domains] == [clip.partition("/")[0] for clip in index.ids]


def test_frames_flow_and_sound_are_those_of_the_same_window(archive: Archive) -> None:
    for clip, label, place in clips():
        domain, name = clip.split("/")
        if domain == "animal" and name in (WITHOUT_VIDEO, WITHOUT_SOUND):
            continue
        red, green, blue = archive.row("video", clip).mean(axis=(2, 3))
        chosen = numbers(SHORT_CLIP if place == 2 else LONG_CLIP, FRAMES)
        assert np.abs(red - SHADE[domain]).max() < 8
        assert np.abs(green - (40 + 60 * label)).max() < 8
        assert np.abs(blue - BLUE * np.array(chosen)).max() < 6
        flow = archive.row("flow", clip).mean(axis=(1, 2, 3))
        assert np.abs(flow - MOTION[label]).max() <= 1
        # A pitch of 200, 280 or 360 Hz in bins of 31.25 Hz.
        assert abs(archive.row("audio", clip)[0].mean(axis=1).argmax() - (200 + 80 * label) / 31.25) <= 1


def test_spectrograms_have_mean_0_and_deviation_1_whatever_the_recording(archive: Archive) -> None:
    for clip, _, _ in clips():
        audio = archive.row("audio", clip)
        silent = clip == f"animal/{WITHOUT_SOUND}"
        assert audio.mean() == pytest.approx(0, abs=1e-3)
        assert audio.std() == pytest.approx(0 if silent else 1, abs=1e-3)


def test_what_is_listed_twice_missing_or_slow_is_said(archive: Archive) -> None:
    said = archive.said
    assert "flow: median level 128, 128 is no motion" in said
    assert "1 of 26 clips are not at 24 frames per second; 1 at 12.0" in said
    assert f"1 clips are in a training and a test list, and test alone: human/{TWICE}" in said
    assert "0 clips were cut from test clips' videos, and train in legacy alone: " in said
    (start,) = (number for number, line in enumerate(said) if line.startswith("official train"))
    assert [line.removeprefix("legacy") for line in said[start + 3 : start + 6]] == [
        line.removeprefix("official") for line in said[start : start + 3]
    ]
    assert said[start : start + 3] == [
        "official train: 9 clips expected, 8 found, 0 of them with faults",
        "official val: 8 clips expected, 8 found, 1 of them with faults",
        "official test: 10 clips expected, 10 found, 0 of them with faults",
    ]


def test_clips_without_video_or_sound_are_kept_black_or_silent(archive: Archive) -> None:
    assert not archive.row("video", f"animal/{WITHOUT_VIDEO}").any()
    assert (archive.row("flow", f"animal/{WITHOUT_VIDEO}") != STILL).any()
    faults = {line.partition(" ")[0]: line.partition("): ")[2] for line in archive.said if line.startswith("animal/")}
    assert faults == {f"animal/{WITHOUT_VIDEO}": "no file", f"animal/{WITHOUT_SOUND}": "audio no file"}


def test_a_clip_that_takes_the_decoder_down_is_black_still_and_silent() -> None:
    found = crashed("clip", HACFlow.card.shapes)
    assert found.faults == ("takes the decoder down",)
    assert {m: set(np.unique(values).tolist()) for m, values in found.inputs.items()} == {
        "audio": {0.0},
        "video": {0},
        "flow": {STILL},
    }


def test_hac_without_flow_holds_the_same_frames_and_sounds_of_the_same_files(archive: Archive) -> None:
    assert (HAC.card.modalities, HACFlow.card.modalities) == (("audio", "video"), ("audio", "video", "flow"))
    assert HACFlow.card.raw_name == HAC.card.name == "hac"
    listed, _ = read_lists(archive.raw, DOMAINS, len(CLASSES))
    clip, files = next(zip(listed, read_files(archive.raw, listed, flow=False), strict=False))
    found = decode(files, HAC.card.shapes)
    assert found.inputs.keys() == {"audio", "video"}
    assert all(np.array_equal(values, archive.row(modality, clip.id)) for modality, values in found.inputs.items())


@pytest.mark.usefixtures("archive")
def test_leaving_a_domain_out_takes_other_parts_in_legacy_than_in_official() -> None:
    official, legacy = (load("hac_flow", split) for split in ("official", "legacy"))
    assert official.domains == DOMAINS
    for number, target in enumerate(DOMAINS):
        sizes = {
            split: {part: len(own) for part, own in data.without(target).items() if part in PARTS}
            for split, data in (("official", official), ("legacy", legacy))
        }
        by_domain = {part: own.domains for part, own in official.parts.items()}
        own = {part: int((found == number).sum()) for part, found in by_domain.items() if found is not None}
        others = {part: len(official.parts[part]) - own[part] for part in PARTS}
        assert sizes["official"] == {"train": others["train"], "val": others["val"], "test": own["test"]}
        assert sizes["legacy"] == {
            "train": others["train"] + others["val"],
            "val": others["test"],
            "test": sum(own.values()),
        }


@pytest.mark.usefixtures("archive")
def test_the_sources_of_legacy_share_no_clip_between_parts_and_give_the_normalisation() -> None:
    parts = load("hac_flow", "legacy").without("cartoon")
    rows = {part: set(parts[part].rows["video"].tolist()) for part in PARTS}
    assert sum(map(len, rows.values())) == len(set.union(*rows.values())) == 27
    train = parts["train"]
    assert train.domains is not None
    assert train.domains.bincount().tolist() == [5, 6]
    (batch,) = train.batches(64)
    for modality in ("audio", "video"):
        assert batch.inputs[modality].mean().item() == pytest.approx(0, abs=1e-3)
    assert parts["test"].scaling == train.scaling


@pytest.mark.usefixtures("archive")
def test_the_prepared_look_alike_conforms() -> None:
    records = list(check_dataset("hac_flow"))
    assert {record.outcome for record in records} == {Outcome.PASSED}, records


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize("split", HAC.card.splits)
def test_a_cell_trains_on_two_domains_and_tests_on_the_third(split: str) -> None:
    protocol = Protocol(epochs=1, batch_size=8, split=split, hidden=8, optimizer=Optimizer(lr=0.01))
    with tiny_backbone() as backbone:
        cell = Cell(
            dataset="hac_flow",
            backbone=backbone,
            fusion="concat",
            method="gmp",
            protocol=protocol,
            seed=0,
            target="animal",
        )
        first, again = run_cell(cell), run_cell(cell)
    assert first["modalities"] == ["audio", "video", "flow"]
    assert math.isfinite(first["epochs"][0]["loss"])
    assert first["epochs"] == again["epochs"]


def test_training_mirrors_flow_with_its_frames_and_mutes_nine_frequencies_of_every_sound() -> None:
    ramp = torch.linspace(-1, 1, 224)
    inputs = {
        "audio": torch.full((16, 1, 257, 1004), 5.0),
        "video": ramp.expand(16, 3, 2, 224, 224),
        "flow": torch.full((16, 2, 2, 224, 224), 0.5),
    }
    found, again, other = (HACFlow().augment(inputs, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    mirrored = found["video"][:, 0, 0, 0, 0] > found["video"][:, 0, 0, 0, -1]
    assert 0 < mirrored.sum() < 16
    assert torch.equal(found["flow"][:, 0, 0, 0, 0] < 0, mirrored)
    assert (found["flow"][:, 1] > 0).all()
    muted = (found["audio"] == 0).all(dim=3)[:, 0]
    assert (muted.sum(dim=1) == 9).all()
    assert (muted.long().argmax(dim=1) <= 246).all()
    heard = found["audio"][~muted[:, None, :, None].expand_as(found["audio"])]
    assert (heard - 5).abs().max() == pytest.approx(0.05, abs=1e-3)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.equal(found["audio"], other["audio"])


@pytest.mark.parametrize("name", ["hac", "hac_flow"])
def test_preparing_depends_on_every_source_of_the_dataset(name: str) -> None:
    stages = yaml.safe_load((SOURCE_ROOT / f"datasets/{name}/dvc.yaml").read_text())["stages"]
    sources = {str(file.relative_to(SOURCE_ROOT)) for file in DATASETS.entry(name).source_files()}
    assert set(stages["prepare"]["deps"]) == {*sources, "data/raw/hac"}


def test_what_listing_and_each_decoding_process_import_is_light() -> None:
    code = (
        "import sys, datasets.hac_flow; listed = set(sys.modules); import datasets.hac.clips; "
        "print(sorted({'av', 'scipy', 'soundfile', 'torch', 'torchaudio', 'pydantic'} & set(sys.modules)), "
        "'datasets.hac.clips' in listed)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=SOURCE_ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[] False\n"
