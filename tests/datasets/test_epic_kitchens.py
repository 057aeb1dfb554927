from __future__ import annotations

import math
import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmark.conformance_dataset import check_dataset
from benchmark.conformance_trial import Outcome
from benchmark.data import load
from benchmark.dataset import PARTS, Manifest
from benchmark.errors import DataError
from benchmark.paths import SOURCE_ROOT
from benchmark.prepared import manifest_digest
from benchmark.protocol import Cell, Optimizer, Protocol
from benchmark.registry import DATASETS
from benchmark.run import run_cell
from datasets.epic_kitchens import EpicKitchens
from datasets.epic_kitchens.clips import decode, numbers, read_cuts
from datasets.epic_kitchens.segments import Segment, official_parts, read_segments, seconds
from datasets.epic_kitchens.tables import read_table
from datasets.epic_kitchens_flow import EpicKitchensFlow
from tests.datasets.archives import Archive, archive_of
from tests.datasets.cells import tiny_backbone
from tests.datasets.epic_lookalike import (
    CLASSES,
    COLUMNS,
    LENGTHS,
    MUTE,
    REDS,
    TORN,
    VIDEOS,
    label_at,
    write_table,
)
from tests.datasets.hac_lookalike import FRAMES, MOTION, SHAPES

DOMAINS = ("D1", "D2", "D3")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with archive_of(EpicKitchensFlow, tmp_path_factory.mktemp("epic")) as found:
        yield found


@pytest.fixture(scope="module")
def segments(archive: Archive) -> list[Segment]:
    return read_segments(archive.raw, DOMAINS, len(CLASSES))


def published(source: str) -> Manifest:
    (found,) = (s.manifest for s in EpicKitchensFlow.card.sources if s.file == source and s.manifest)
    return found


def test_frames_and_flow_of_64_videos_have_a_published_md5() -> None:
    for stream, source in (("rgb", "frames"), ("flow", "flow")):
        files = published(source).files
        assert len(files) == 64
        assert {len(checksum.md5) for checksum in files.values()} == {32}
        people = Counter(path.split("/")[3] for path in files if path.startswith(f"frames_rgb_flow/{stream}/"))
        assert people == {"P08": 28, "P01": 19, "P22": 17}


def test_another_md5_is_another_manifest(tmp_path: Path) -> None:
    digests = set()
    for sums in ("0" * 32, "1" * 32):
        (tmp_path / f"{sums}.csv").write_text(f"path,md5\na.tar,{sums}\n")
        (source, *_) = EpicKitchens.card.sources
        changed = replace(source, manifest=Manifest(tmp_path / f"{sums}.csv", ("http://127.0.0.1:1/{path}",)))
        digests.add(manifest_digest(replace(EpicKitchens.card, sources=(changed,))))
    assert len(digests) == 2


def test_times_are_read_to_the_hundredth() -> None:
    assert seconds("01:02:03.45") == pytest.approx(3723.45)
    assert seconds("00:00:00.00") == 0


def test_a_window_of_a_segment_is_in_its_middle_or_wraps_around() -> None:
    segment = Segment("D1", "train", "P08_01", 1, 0, 100, 230, 0.0, 1.0)
    assert numbers(segment) == [133 + 2 * n for n in range(32)]
    assert numbers(replace(segment, last=140)) == [*range(100, 140, 2), *range(100, 124, 2)]


def test_a_table_is_read_column_by_column(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "video_id": ["a", "b"],
        "uid": [1, 2],
        "narration": ["cut bread", "é"],
        "verb_class": [3, 4],
    }
    write_table(tmp_path / "table.pkl", columns)
    assert b"cnumpy.core.multiarray\n" in (tmp_path / "table.pkl").read_bytes()
    assert {name: values.tolist() for name, values in read_table(tmp_path / "table.pkl").items()} == columns


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch stolen",)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(
    tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Malicious(), protocol))
    with pytest.raises(DataError, match=r"bad\.pkl is no table of an old pandas \(it asks for posix\.system\)"):
        read_table(tmp_path / "bad.pkl")
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"uid": [1]}), pickle.dumps(3)[:-1]])
def test_another_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.pkl is no table"):
        read_table(tmp_path / "bad.pkl")


def test_a_list_without_a_column_or_with_another_class_is_refused(tmp_path: Path) -> None:
    row = (1, 10, 90, 8, "P08_01", "00:00:00.15", "00:00:01.48")
    for listed in ("train", "test"):
        write_table(tmp_path / f"D1_{listed}.pkl", {name: [value] for name, value in zip(COLUMNS, row, strict=True)})
    with pytest.raises(DataError, match=r"D1_train\.pkl: P08_01-1 is of class 8, not of one below 8"):
        read_segments(tmp_path, ("D1",), 8)
    write_table(tmp_path / "D1_train.pkl", {"uid": [1], "video_id": ["P08_01"]})
    with pytest.raises(DataError, match=r"D1_train\.pkl lacks the column 'verb_class'"):
        read_segments(tmp_path, ("D1",), 8)


def test_no_video_is_in_two_parts_and_validation_has_at_most_fifteen_percent() -> None:
    videos = [f"P{domain}_{number:02d}" for domain in range(3) for number in range(20)]
    segments = [
        Segment(f"D{v[1]}", "test" if v.endswith("9") else "train", v, 1000 * place + n, n % 8, 1, 90, 0.0, 1.5)
        for place, v in enumerate(videos)
        for n in range(10 + 7 * (place % 3))
    ]
    parts = official_parts(segments)
    found = {part: {s.video for s, own in zip(segments, parts, strict=True) if own == part} for part in PARTS}
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 60
    assert found["test"] == {video for video in videos if video.endswith("9")}
    counts = Counter(zip([s.domain for s in segments], parts, strict=True))
    for domain in ("D0", "D1", "D2"):
        assert 0.1 < counts[domain, "val"] / (counts[domain, "val"] + counts[domain, "train"]) <= 0.15


def test_every_archive_is_verified(archive: Archive) -> None:
    first, audio, *lists, flow = map(str, archive.found)
    assert first == "frames: 9 expected, 9 found, 0 broken"
    assert flow == "flow: 9 expected, 9 found, 0 broken"
    assert {text.partition(":")[2] for text in (audio, *lists)} == {" 1 expected, 1 found, 0 broken"}
    (path, *_) = published("frames").files
    broken = archive.home / "broken"
    shutil.copytree(archive.raw, broken)
    (broken / path).write_bytes(b"another")
    assert f"9 found, 1 broken ({path}: md5 " in EpicKitchensFlow.card.sources[0].check(broken).faults()


def test_arrays_hold_a_window_of_every_segment_in_the_order_of_the_lists(
    archive: Archive, segments: list[Segment]
) -> None:
    index = archive.prepared.index
    assert list(index.ids) == [segment.id for segment in segments]
    assert len(index.ids) == 6 * 9 + 1
    for modality, shape in SHAPES.items():
        array = archive.prepared.array(modality)
        assert (array.shape, array.dtype.name) == ((55, *shape), "float16" if modality == "audio" else "uint8")
    assert index.domains is not None
    for segment, label, domain in zip(segments, index.labels, index.domains, strict=True):
        assert (segment.label, segment.domain) == (label, DOMAINS[domain])


def test_a_segment_that_is_annotated_twice_is_kept_with_both_classes(archive: Archive, segments: list[Segment]) -> None:
    places = Counter((segment.video, segment.first, segment.last) for segment in segments)
    ((place, count),) = ((place, count) for place, count in places.items() if count > 1)
    twice = [segment for segment in segments if (segment.video, segment.first, segment.last) == place]
    assert count == len({segment.label for segment in twice}) == len({segment.id for segment in twice}) == 2
    first, second = (archive.row("video", segment.id) for segment in twice)
    assert np.array_equal(first, second)


def test_frames_flow_and_sound_are_those_of_the_same_window(archive: Archive, segments: list[Segment]) -> None:
    assert sorted({segment.last - segment.first for segment in segments}) == list(LENGTHS)
    for segment in segments:
        label, chosen = label_at(segment.first), np.array(numbers(segment, FRAMES))
        if segment.video == TORN and chosen.max() >= 200:
            continue
        red, green, blue = archive.row("video", segment.id).mean(axis=(2, 3))
        assert np.abs(red - REDS[segment.domain]).max() < 4
        assert np.abs(green - (40 + 60 * label)).max() < 4
        assert np.abs(blue - chosen).max() < 4
        assert np.abs(archive.row("flow", segment.id).mean(axis=(1, 2, 3)) - MOTION[label]).max() <= 1
        audio = archive.row("audio", segment.id)
        if segment.video == MUTE:
            assert np.abs(audio).max() < 1e-3
            continue
        assert audio.std() == pytest.approx(1, abs=1e-3)
        # A pitch of 200, 280 or 360 Hz, broken at every frame, in bins of 31.25 Hz.
        assert abs(audio[0, :40].mean(axis=1).argmax() - (200 + 80 * label) / 31.25) <= 2


def test_frames_that_an_archive_lacks_are_the_last_before_them_and_said(
    archive: Archive, segments: list[Segment]
) -> None:
    cut_off = [s for s in segments if s.video == TORN and max(numbers(s, FRAMES)) >= 200]
    faults = {line.partition(" ")[0]: line.partition("): ")[2] for line in archive.said if line.startswith(f"{TORN}-")}
    assert faults.keys() <= {segment.id for segment in segments if segment.video == TORN}
    for segment in cut_off:
        missing = sum(number >= 200 for number in numbers(segment, FRAMES))
        assert faults[segment.id] == f"video {missing} of {FRAMES} frames missing"
        assert archive.row("video", segment.id)[2, -1].mean() == pytest.approx(199, abs=12)
    mute = [line for line in archive.said if line.startswith(f"{MUTE}-")]
    assert len(mute) == 6
    assert all(line.endswith("audio no file") for line in mute)


def test_every_part_is_counted(archive: Archive, segments: list[Segment]) -> None:
    (start,) = (number for number, line in enumerate(archive.said) if line.startswith("official train"))
    lines = archive.said[start : start + 3]
    assert [line.partition(",")[0] for line in lines] == [
        *(f"official {part}: {archive.prepared.meta.splits['official'].counts[part]} clips expected" for part in PARTS)
    ]
    assert archive.prepared.meta.splits["official"].counts["test"] == 18
    videos = dict(zip((s.video for s in segments), archive.prepared.index.parts["official"], strict=True))
    assert Counter(videos.values()) == {"train": 3, "val": 3, "test": 3}
    assert {video for video, part in videos.items() if part == "test"} == {
        video for (_, listed), own in VIDEOS.items() for video in own if listed == "test"
    }


def test_without_flow_the_same_frames_are_read(archive: Archive, segments: list[Segment]) -> None:
    assert (EpicKitchens.card.modalities, EpicKitchensFlow.card.raw_name) == (("audio", "video"), "epic_kitchens")
    raw = archive.raw
    audio = raw / "EPIC-KITCHENS-audio.zip"
    cuts = read_cuts(raw, audio, segments[:2], FRAMES, flow=False)
    for segment, cut in zip(segments, cuts, strict=False):
        found = decode(cut, EpicKitchens.card.shapes)
        assert found.inputs.keys() == {"audio", "video"}
        assert all(
            np.array_equal(values, archive.row(modality, segment.id)) for modality, values in found.inputs.items()
        )


@pytest.mark.usefixtures("archive")
def test_leaving_a_kitchen_out_tests_on_its_test_list_alone_in_both_splits() -> None:
    for target in DOMAINS:
        parts = {split: load("epic_kitchens_flow", split).without(target) for split in EpicKitchens.card.splits}
        sizes = {split: {part: len(found[part]) for part in PARTS} for split, found in parts.items()}
        assert sizes["official"]["test"] == sizes["legacy"]["test"] == 6
        assert sizes["legacy"]["val"] == 12
        assert sizes["legacy"]["train"] == sizes["official"]["train"] + sizes["official"]["val"]
        for found in parts.values():
            rows = {part: set(found[part].rows["video"].tolist()) for part in PARTS}
            assert sum(map(len, rows.values())) == len(set.union(*rows.values()))
            assert found["test"].scaling == found["train"].scaling


@pytest.mark.usefixtures("archive")
def test_the_prepared_look_alike_conforms() -> None:
    records = list(check_dataset("epic_kitchens_flow"))
    assert {record.outcome for record in records} == {Outcome.PASSED}, records


@pytest.mark.usefixtures("archive")
def test_a_cell_trains_on_two_kitchens_and_tests_on_the_third() -> None:
    protocol = Protocol(epochs=1, batch_size=8, split="legacy", hidden=8, optimizer=Optimizer(lr=0.01))
    with tiny_backbone() as backbone:
        record = run_cell(
            Cell(
                dataset="epic_kitchens_flow",
                backbone=backbone,
                fusion="concat",
                method="joint",
                protocol=protocol,
                seed=0,
                target="D2",
            )
        )
    assert record["modalities"] == ["audio", "video", "flow"]
    assert math.isfinite(record["epochs"][0]["loss"])


@pytest.mark.parametrize("name", ["epic_kitchens", "epic_kitchens_flow"])
def test_fetching_and_preparing_depend_on_every_source_of_the_dataset(name: str) -> None:
    stages = yaml.safe_load((SOURCE_ROOT / f"datasets/{name}/dvc.yaml").read_text())["stages"]
    sources = {str(file.relative_to(SOURCE_ROOT)) for file in DATASETS.entry(name).source_files()}
    assert set(stages["prepare"]["deps"]) >= sources | {"datasets/epic_kitchens/frames_md5.csv"}
    assert all((SOURCE_ROOT / path).is_file() for path in stages["prepare"]["deps"] if path.startswith("datasets/"))


def test_what_listing_and_each_decoding_process_import_is_light() -> None:
    code = (
        "import sys, datasets.epic_kitchens_flow; listed = set(sys.modules); import datasets.epic_kitchens.clips; "
        "print(sorted({'av', 'scipy', 'soundfile', 'torch', 'torchaudio', 'pydantic'} & set(sys.modules)), "
        "'datasets.epic_kitchens.clips' in listed)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=SOURCE_ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[] False\n"
