from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from benchmark.conformance_dataset import CHECKS
from benchmark.data import load
from benchmark.dataset import Dataset, DatasetCard
from benchmark.errors import DataError
from benchmark.fetch import fetch
from benchmark.paths import SOURCE_ROOT
from benchmark.preparation import prepare
from benchmark.registry import DATASETS
from datasets._clips import flow
from datasets._clips.flow import BOUND, estimator, levels, motion, pair_numbers, segment_motion
from datasets._clips.frames import STILL, squashed
from datasets.ucf51 import FLOW, UCF51
from datasets.ucf51.clips import decode_flow
from datasets.ucf51_computed_flow import UCF51ComputedFlow, computed, crashed
from tests.datasets.archives import Archive, installed
from tests.datasets.lookalikes import picture
from tests.datasets.ucf51_lookalike import (
    CLASSES,
    TRUNCATED,
    WITHOUT_VIDEO,
    gray_video,
    write_ucf51,
)

RIGHT = 4
"""Pixels that the look-alike's square moves from frame to frame."""
SQUARE = (slice(35, 85), slice(17, 70))
"""Rows and columns inside the square of its frames 3 and 4."""
GREEN = 1
"""A class whose square is lighter than its ground: in gray the red one, class 0, can hardly be told from it."""


def gray(number: int) -> NDArray[np.uint8]:
    return av.VideoFrame.from_ndarray(picture(GREEN, number)).reformat(format="gray").to_ndarray().astype(np.uint8)


def textured(seed: int = 0) -> NDArray[np.uint8]:
    """Return an image (60, 80) whose motion can be seen everywhere."""
    coarse = torch.rand(1, 1, 12, 16, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (60, 80), mode="bicubic").clamp(0, 1)
    return (255 * fine[0, 0]).numpy().astype(np.uint8)


def test_the_look_alikes_square_moves_four_pixels_to_the_right() -> None:
    u, v = motion(gray(3), gray(4))
    # Its surface is even, so that the estimate is somewhat smoothed.
    assert np.median(u[SQUARE]) == pytest.approx(RIGHT, abs=0.5)
    assert np.abs(v).mean() < 0.1


@pytest.mark.parametrize(("right", "down"), [(3, 0), (-3, 0), (0, 2), (0, -2), (2, -1)])
def test_motion_is_to_the_right_and_down_in_pixels(right: int, down: int) -> None:
    before = textured()
    found = motion(before, np.roll(before, (down, right), (0, 1)))
    assert (found.shape, found.dtype.name) == ((2, 60, 80), "float32")
    assert np.median(found, axis=(1, 2)) == pytest.approx([right, down], abs=0.2)


def test_nothing_moves_between_equal_images() -> None:
    assert not motion(textured(), textured()).any()
    assert not motion(np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)).any()


def test_an_estimate_does_not_depend_on_what_was_estimated_before() -> None:
    first, again = (motion(textured(), textured(1)) for _ in range(2))
    estimator.cache_clear()
    assert np.array_equal(first, again)
    assert np.array_equal(first, motion(textured(), textured(1)))


def test_a_process_estimates_on_one_thread() -> None:
    import cv2  # type: ignore[import-not-found, unused-ignore]

    cv2.setNumThreads(2)
    estimator.cache_clear()
    estimator()
    assert cv2.getNumThreads() == 1


def test_levels_are_those_of_published_flow() -> None:
    flow = np.array([0, -0.0, 20, -20, 35, -35, 10, -10, 4, -4], np.float32)
    assert levels(flow).tolist() == [STILL, STILL, 255, 0, 255, 0, 191, 64, 153, 102]


def test_levels_say_motion_to_less_than_a_tenth_of_a_pixel() -> None:
    flow = np.linspace(-BOUND, BOUND, 1001, dtype=np.float32)
    per_level = 2 * BOUND / 255
    assert np.abs((levels(flow) - 127.5) * per_level - flow).max() <= per_level / 2 + 1e-5


def test_frames_of_a_pair_follow_one_another_in_the_middle_of_a_segment() -> None:
    # Middles of the thirds of 31 pairs, as where published flow is read: within the 6th, 16th and 26th.
    assert pair_numbers(32, 3) == [5, 6, 15, 16, 25, 26]
    assert pair_numbers(2, 3) == [0, 1] * 3
    # There is no second frame: the reader takes the last one twice.
    assert pair_numbers(1, 3) == pair_numbers(0, 3) == [0, 1] * 3


def test_published_and_computed_flow_are_of_the_same_pairs() -> None:
    for count in range(28, 64):
        ramp = list(range(100, 100 + count - 1))
        published = decode_flow(("clip", {axis: gray_video(ramp) for axis in "xy"})).images[0].mean(axis=(1, 2))
        wanted = [100 + number for number in pair_numbers(count, 3)[::2]]
        assert np.abs(published - wanted).max() <= 1.5, count


def test_images_are_squashed_with_their_levels_as_they_are() -> None:
    flat = np.stack([np.full((48, 64), level, np.uint8) for level in (0, STILL, 255)])
    found = squashed(flat, 56)
    assert found.shape == (3, 56, 56)
    assert [np.unique(image).tolist() for image in found] == [[0], [STILL], [255]]


def video(frames: int) -> bytes:
    """Return an MP4 (nearly lossless) of the look-alike's frames."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv444p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(GREEN, number), format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def test_a_video_gives_levels_at_the_middles_of_its_segments() -> None:
    found = segment_motion(video(20), 3, side=56)
    assert found.faults == ()
    assert (found.images.shape, found.images.dtype.name, found.count) == ((2, 3, 56, 56), "uint8", 20)
    expected = [levels(motion(gray(n), gray(n + 1))) for n in pair_numbers(20, 3)[::2]]
    for number, flow_of_pair in enumerate(expected):
        difference = found.images[:, number].astype(int) - squashed(flow_of_pair, 56)
        assert np.abs(difference).mean() < 1
        # From left to right, 4 of 20 pixels in 127.5 levels.
        assert found.images[0, number].max() == pytest.approx(127.5 + 127.5 * RIGHT / BOUND, abs=4)


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"no video", "unreadable (InvalidDataError)"), (video(1), "1 frame instead of at least 6")],
)
def test_nothing_moves_where_there_are_no_two_frames(content: bytes, fault: str) -> None:
    found = segment_motion(content, 3)
    assert found.faults == (fault,)
    assert found.images.shape == (2, 3, 224, 224)
    assert (found.images == STILL).all()


def test_without_opencv_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    estimator.cache_clear()
    for call in (estimator, lambda: UCF51ComputedFlow().prepare(tmp_path, None)):  # type: ignore[arg-type]
        with pytest.raises(
            DataError, match=r"^Optical flow is computed by OpenCV .* Run `pip install 'equipoise\[flow"
        ):
            call()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """The look-alike without its archive of flow, prepared with computed flow."""
    home = tmp_path_factory.mktemp("ucf51_computed_flow")
    lookalike = write_ucf51(home / "mirror" / "ucf51")
    (lookalike.folder / FLOW).unlink()
    sources = tuple(source for source in lookalike.cards[UCF51].sources if source.file != FLOW)
    cards: Mapping[type[Dataset], DatasetCard] = {
        UCF51ComputedFlow: replace(UCF51ComputedFlow.card, sources=sources, classes=CLASSES)
    }
    with installed(replace(lookalike, cards=cards), home):
        found = fetch(UCF51ComputedFlow, home / "raw" / "ucf51", home / "mirror")
        said: list[str] = []
        prepared = prepare("ucf51_computed_flow", say=said.append)
        yield Archive(lookalike, home, home / "raw" / "ucf51", found, prepared, said)


def test_it_is_ucf51_without_the_archive_of_flow() -> None:
    own, published = UCF51ComputedFlow.card, UCF51.card
    assert {source.file for source in published.sources} - {source.file for source in own.sources} == {FLOW}
    assert own.raw_name == published.name
    for field in ("shapes", "classes", "splits", "default_split", "zeros"):
        assert getattr(own, field) == getattr(published, field)
    assert "MultiOOD" not in own.citation


def test_every_clip_has_flow_of_its_own_video(archive: Archive) -> None:
    assert archive.prepared.index.ids == archive.lookalike.names
    assert archive.prepared.array("flow").shape == (18, 2, 3, 224, 224)
    for name, label in zip(archive.prepared.index.ids, archive.prepared.index.labels, strict=True):
        u, v = archive.row("flow", name)
        assert np.abs(np.median(v, axis=(1, 2)) - STILL).max() <= 1, name
        if name == WITHOUT_VIDEO:
            assert (u == STILL).all()
        elif label >= GREEN:
            # The square is a sixth of the image, and moves to the right but in the frame in which it begins anew.
            assert (np.percentile(u, 90, axis=(1, 2)) > STILL + 15).sum() >= 2, name


def test_most_of_the_flow_is_said_to_be_no_motion_and_faults_are_those_of_the_videos(archive: Archive) -> None:
    start = archive.said.index("flow: median level 128, 128 is no motion")
    assert archive.said[start + 1] == "official1 train: 6 clips expected, 5 found, 1 of them with faults"
    named = [line for line in archive.said[start:] if line.startswith("v_")]
    assert [line.partition(" ")[0] for line in named] == [TRUNCATED, WITHOUT_VIDEO]


@pytest.mark.usefixtures("archive")
def test_the_prepared_look_alike_conforms_and_no_motion_normalises_to_zero() -> None:
    data = load("ucf51_computed_flow")
    assert {name: check(data) for name, check in CHECKS.items()} == dict.fromkeys(CHECKS, "")
    (batch,) = data.parts["train"].batches(32)
    assert (batch.inputs["flow"] == 0).float().mean() > 0.5


def test_a_clip_that_takes_the_decoder_down_or_is_not_there_does_not_move() -> None:
    for found in (crashed(("clip", b"")), computed(("clip", None))):
        assert found.note.clip == "clip"
        assert found.note.faults
        assert (found.images == STILL).all()


def test_preparing_depends_on_every_source_of_the_dataset() -> None:
    stages = yaml.safe_load((SOURCE_ROOT / "datasets/ucf51_computed_flow/dvc.yaml").read_text())["stages"]
    sources = {str(file.relative_to(SOURCE_ROOT)) for file in DATASETS.entry("ucf51_computed_flow").source_files()}
    assert set(stages["prepare"]["deps"]) == {*sources, "data/raw/ucf51"}
    assert Path(flow.__file__) not in DATASETS.entry("ucf51").source_files()


def test_what_listing_and_each_decoding_process_import_is_light() -> None:
    code = (
        "import sys, datasets.ucf51_computed_flow; "
        "print(sorted({'av', 'cv2', 'scipy', 'soundfile', 'torch', 'torchaudio', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=SOURCE_ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
