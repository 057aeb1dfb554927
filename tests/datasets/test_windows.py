"""What datasets of windows of action share: numbered frames, single pictures, their sound, and the held-out part."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmark.errors import DataError
from datasets._clips.archives import read_spans, tar_spans
from datasets._clips.frames import GRAY, numbered_frames
from datasets._clips.holdout import held_out
from datasets._clips.sound import Sound, read_wave, standard_spectrogram
from datasets._clips.stills import still_frames
from datasets._clips.windows import window
from tests.datasets.hac_lookalike import video
from tests.datasets.lookalikes import tone, write_wave
from tests.datasets.ucf51_lookalike import write_tar

SIDE = 56


def levels(count: int, height: int = 48, width: int = 64) -> list[NDArray[np.uint8]]:
    return [np.full((height, width, 3), 5 * number, np.uint8) for number in range(count)]


def jpeg(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.mark.parametrize("length", [64, 65, 66, 130, 700])
def test_a_window_of_32_frames_is_centred_in_what_it_does_not_fill(length: int) -> None:
    found = window(length)
    assert np.diff(found).tolist() == [2] * 31
    before, after = found[0], length - 1 - found[-1]
    # The window spans 64 frames, the last of which is not shown.
    assert before - (after - 1) in (0, 1)


def test_a_window_longer_than_its_clip_goes_on_from_the_beginning() -> None:
    assert window(63) == [*range(0, 63, 2)]
    assert window(40) == [*range(0, 40, 2), *range(0, 24, 2)]
    assert window(5, 4) == [0, 2, 4, 1]
    assert window(1) == window(0) == [0] * 32


def test_numbered_frames_come_in_any_order_and_again() -> None:
    content = video(levels(40))
    asked: list[int] = []

    def choose(count: int) -> list[int]:
        asked.append(count)
        return [30, 4, 39, 4, 99]

    found = numbered_frames(content, 5, choose, SIDE)
    assert (asked, found.count, round(found.rate, 3), found.faults) == ([40], 40, 24.0, ())
    assert found.images.shape == (3, 5, SIDE, SIDE)
    assert np.abs(found.images.mean(axis=(0, 2, 3)) - 5 * np.array([30, 4, 39, 4, 39])).max() < 3


@pytest.mark.parametrize("file", [b"no video", b""])
def test_frames_of_no_video_are_blank(file: bytes) -> None:
    found = numbered_frames(file, 3, lambda count: [count] * 3, SIDE, GRAY)
    assert (found.images == 128).all()
    assert (found.images.shape, found.count, len(found.faults)) == ((1, 3, SIDE, SIDE), 0, 1)


@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64)])
def test_the_centre_is_seven_eighths_of_the_short_side_undistorted(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    top, left = (height - 56) // 2, (width - 56) // 2
    image[top : top + 56, left : left + 56] = 255
    shown = numbered_frames(video([image] * 2), 1, lambda _: [0], SIDE).images[:, 0]
    still = still_frames([jpeg(image)], SIDE).images[:, 0]
    for found in (shown, still):
        assert found[:, 2:-2, 2:-2].min() > 230
    white = numbered_frames(video([np.full_like(image, 255)] * 2), 1, lambda _: [0], SIDE).images
    assert white.min() > 250


def test_a_missing_or_damaged_picture_is_the_last_good_one_before_it_and_said() -> None:
    pictures = [jpeg(image) for image in levels(3)]
    found = still_frames([None, pictures[1], b"junk", pictures[2], None], SIDE)
    assert found.faults == ("2 of 5 frames missing", "1 of 5 frames damaged")
    assert np.abs(found.images.mean(axis=(0, 2, 3)) - [5, 5, 5, 10, 10]).max() < 1
    assert still_frames([None] * 2, SIDE).faults == ("2 of 2 frames missing", "no frame can be decoded")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_still_flow_keeps_its_levels(mode: str) -> None:
    for level in (0, 88, 128, 168, 255):
        file = io.BytesIO()
        Image.new(mode, (64, 48), (level,) * len(mode) if mode == "RGB" else level).save(file, "JPEG", quality=95)
        assert np.abs(still_frames([file.getvalue()], SIDE, GRAY).images.astype(int) - level).max() <= 1


def test_files_in_a_tar_are_found_by_place(tmp_path: Path) -> None:
    members = {"./a/frame_1.jpg": b"one", "a/frame_2.jpg": b"second" * 100}
    write_tar(tmp_path / "a.tar", members, "w")
    spans = dict(tar_spans(tmp_path / "a.tar"))
    assert list(spans) == list(members)
    assert read_spans(tmp_path / "a.tar", [*spans.values()][::-1]) == [*members.values()][::-1]
    write_tar(tmp_path / "b.tar.gz", members)
    with pytest.raises(DataError, match=r"b\.tar\.gz is no tar archive without compression"):
        list(tar_spans(tmp_path / "b.tar.gz"))


def test_the_standard_spectrogram_is_that_of_its_definition() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 160_000).astype(np.float32)
    ramp = np.linspace(0, np.pi, 65)[:-1]
    # Tukey: raised cosines over the first and last eighth of 513 points, of which the last is left out.
    window_ = np.ones(512)
    window_[:64], window_[449:] = (1 - np.cos(ramp)) / 2, ((1 - np.cos(ramp)) / 2)[:0:-1]
    frames = np.stack([samples[159 * t : 159 * t + 512].astype(np.float64) for t in range(1004)])
    power = np.abs(np.fft.rfft((frames - frames.mean(axis=1, keepdims=True)) * window_)) ** 2
    power /= 16_000 * np.square(window_).sum()
    power[:, 1:-1] *= 2
    level = np.log(power + 1e-7).T
    expected = (level - level.mean()) / level.std()
    found = standard_spectrogram(Sound(samples, 16_000))
    assert (found.shape, found.dtype.name) == ((1, 257, 1004), "float16")
    # At 0 Hz, where the mean was removed, the logarithm magnifies single precision's error.
    assert np.abs(found[0, 1:] - expected[1:]).max() < 4e-3


def test_a_short_sound_is_repeated_to_ten_seconds_and_a_long_one_cut() -> None:
    one = tone(0, 1.3, 16_000)
    waves = (one, np.tile(one, 8), np.tile(one, 9)[:160_000])
    short, filled, cut = (standard_spectrogram(Sound(samples, 16_000)) for samples in waves)
    assert np.array_equal(short, filled)
    assert np.array_equal(short, cut)


def test_silence_is_about_zero_and_another_rate_is_refused() -> None:
    for samples in (np.zeros(0, np.float32), np.zeros(100, np.float32)):
        assert np.abs(standard_spectrogram(Sound(samples, 16_000))).max() < 1e-3
    with pytest.raises(ValueError, match="Found 8000 Hz"):
        standard_spectrogram(Sound(tone(0, 1, 8000), 8000))


def test_an_excerpt_says_whether_anything_is_heard_in_it(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", np.concatenate([tone(0, 1, 16_000), np.zeros(16_000, np.float32)]))
    sound = read_wave((tmp_path / "a.wav").read_bytes(), 16_000)
    assert sound.faults == ()
    assert np.array_equal(sound.excerpt(0.25, 0.75).samples, sound.samples[4000:12_000])
    assert [sound.excerpt(*times).faults for times in ((0, 1), (1, 2), (2, 3))] == [(), ("silent",), ("no samples",)]
    assert read_wave(b"no wave", 16_000).excerpt(0, 1).faults == ("unreadable (LibsndfileError)",)


def test_whole_groups_are_held_out_up_to_the_share_of_each_stratum() -> None:
    groups = [f"video {number // 3}" for number in range(300)]
    strata = [0 if number < 150 else 1 for number in range(300)]
    held = held_out(groups, strata, 0.2)
    assert len({(group, out) for group, out in zip(groups, held, strict=True)}) == 100
    assert Counter(stratum for stratum, out in zip(strata, held, strict=True) if out) == {0: 30, 1: 30}
    order = np.random.default_rng(0).permutation(300)
    again = held_out([groups[n] for n in order], [strata[n] for n in order], 0.2)
    assert again == [held[n] for n in order]


def test_a_group_above_the_share_is_held_out_only_where_there_is_no_smaller_one() -> None:
    groups = ["large"] * 50 + [f"small {number}" for number in range(50)]
    held = held_out(groups, [0] * 100, 0.2)
    assert not any(held[:50])
    assert sum(held[50:]) == 20
    assert sum(held_out(["a", "a", "b", "b"], [0] * 4, 0.2)) == 2
    assert held_out(["a", "a"], [0] * 2, 0.2) == [False] * 2
