from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, ks_2samp
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from datasets._clips.frames import Frames, Pixels, frames_at, segment_centres, segment_frames
from datasets._clips.pool import decode_all
from datasets._clips.report import problem_report
from datasets._clips.sound import Sound, filter_bank, log_spectrogram, read_track, read_wave
from datasets._clips.views import Views, draw_views
from tests.datasets.lookalikes import COLOURS, FRAME_RATE, HEIGHT, WIDTH, picture, pitch, tone, write_video, write_wave
from tests.datasets.workers import crashed, decode_or_crash

SIDE = 56
Numbers = NDArray[np.float64]


def left_edges(frames: Frames) -> list[float]:
    """Return where the red square begins in every frame, in pixels of the video."""
    red = frames.images[0].astype(int) - frames.images[2] > 80
    return [float(np.flatnonzero(shown.any(axis=0))[0]) * WIDTH / frames.images.shape[-1] for shown in red]


@pytest.mark.parametrize(("suffix", "codec"), [("flv", "flv1"), ("mp4", "mpeg4"), ("avi", "mpeg4")])
def test_frames_are_those_shown_in_the_middle_of_each_segment(tmp_path: Path, suffix: str, codec: str) -> None:
    file = tmp_path / f"clip.{suffix}"
    write_video(file, 0, frames=24, codec=codec, sound=None)
    found = segment_frames(file, 3)
    assert found.faults == ()
    assert found.seconds == pytest.approx(24 / FRAME_RATE, abs=0.002)
    assert found.images.shape == (3, 3, 224, 224)
    # Middles of the thirds of 24 frames: where frames 4, 12 and 20 begin, 4 pixels further right in every frame.
    for edge, number in zip(left_edges(found), (4, 12, 20), strict=True):
        assert abs(edge - 4 * number) <= 5


def test_frames_at_given_times_are_the_last_ones_shown_up_to_them(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 0, frames=20, codec="mpeg4", sound=None)
    found = frames_at(tmp_path / "clip.mp4", [0.0, 5.9 / FRAME_RATE, 6.1 / FRAME_RATE, 99.0])
    assert [round(edge / 4) for edge in left_edges(found)] == [0, 5, 6, 19]


def test_the_bytes_of_a_video_give_the_frames_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "clip.avi"
    write_video(file, 0, frames=12, codec="mpeg4")
    found, expected = segment_frames(file.read_bytes(), 3), segment_frames(file, 3)
    assert np.array_equal(found.images, expected.images)
    assert (found.seconds, found.faults) == (expected.seconds, expected.faults)


@pytest.mark.parametrize("content", [None, b"no video"])
def test_frames_of_other_pixels_than_rgb_have_their_channels_and_their_blank(
    tmp_path: Path, content: bytes | None
) -> None:
    write_video(tmp_path / "clip.avi", 0, frames=12, codec="mpeg4")
    found = segment_frames(content or tmp_path / "clip.avi", 3, pixels=Pixels("gray", 1, blank=128))
    assert found.images.shape == (1, 3, 224, 224)
    assert (found.images == 128).all() == bool(content) == bool(found.faults)


def test_segment_centres_are_evenly_spaced() -> None:
    assert segment_centres(3.0, 3) == pytest.approx([0.5, 1.5, 2.5])


def test_frames_are_resized_over_the_area_of_their_pixels(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi", 2, frames=1, codec="mpeg4", sound=None)
    (image,) = frames_at(tmp_path / "clip.avi", [0.0], side=40).images.transpose(1, 2, 3, 0)
    means = picture(2, 0).astype(float).reshape(40, HEIGHT // 40, 40, WIDTH // 40, 3).mean(axis=(1, 3))
    inside = image[12:28, 2:13].astype(float)
    assert np.abs(inside - COLOURS[2]).mean() < 12
    assert np.abs(image - means).mean() < 4


def test_a_video_of_one_frame_repeats_it_and_says_so(tmp_path: Path) -> None:
    write_video(tmp_path / "one.flv", 0, frames=1)
    found = segment_frames(tmp_path / "one.flv", 3, SIDE)
    assert found.faults == ("1 frame instead of at least 3",)
    assert found.images.any()
    assert np.array_equal(found.images[:, 0], found.images[:, 2])


def test_a_video_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi", 0, frames=30, codec="mpeg4", sound=None)
    content = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    found = segment_frames(tmp_path / "cut.avi", 3, SIDE)
    assert 0 < found.seconds < 1
    assert found.images[:, 2].any()


def test_a_damaged_frame_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.flv", 0, frames=30, sound=None)
    content = bytearray((tmp_path / "clip.flv").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    (tmp_path / "hole.flv").write_bytes(content)
    found = segment_frames(tmp_path / "hole.flv", 3)
    assert [re.sub(r"\d+", "n", fault) for fault in found.faults] == ["n packets are damaged (concealed)"]
    assert left_edges(found)[0] == pytest.approx(4 * 5, abs=5)


@pytest.mark.parametrize(
    ("content", "fault"), [(b"no video", r"unreadable \(InvalidDataError\)"), (None, r"unreadable \(FileNotFound")]
)
def test_an_unreadable_file_gives_black_frames_no_sound_and_its_fault(
    tmp_path: Path, content: bytes | None, fault: str
) -> None:
    file = tmp_path / "bad.flv"
    if content is not None:
        file.write_bytes(content)
    frames, sound = segment_frames(file, 3, SIDE), read_track(file, 16_000)
    assert not frames.images.any()
    assert frames.images.shape == (3, 3, SIDE, SIDE)
    assert not len(sound.samples)
    for (found,) in (frames.faults, sound.faults):
        assert re.match(fault, found)


def test_a_stream_of_an_unknown_codec_is_a_fault_and_the_other_stream_is_read(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 0, frames=30, codec="libx264", sound="aac")
    content = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "blind.mp4").write_bytes(content.replace(b"avc1", b"nope"))
    (tmp_path / "deaf.mp4").write_bytes(content.replace(b"mp4a", b"nope").replace(b"esds", b"none"))
    frames, sound = segment_frames(tmp_path / "blind.mp4", 3, SIDE), read_track(tmp_path / "blind.mp4", 16_000)
    assert frames.faults == ("1 packets are damaged (unknown codec)", "no frame can be decoded")
    assert sound.faults == ()
    frames, sound = segment_frames(tmp_path / "deaf.mp4", 3, SIDE), read_track(tmp_path / "deaf.mp4", 16_000)
    assert sound.faults == ("1 packets are damaged (unknown codec)", "no samples")
    assert frames.faults == ()


def test_a_file_without_the_stream_that_is_asked_for_says_so(tmp_path: Path) -> None:
    write_video(tmp_path / "mute.mp4", 0, frames=3, codec="mpeg4", sound=None)
    write_wave(tmp_path / "only.wav", tone(0, 0.2, 16_000))
    assert read_track(tmp_path / "mute.mp4", 16_000).faults == ("no sound track",)
    assert segment_frames(tmp_path / "only.wav", 2, SIDE).faults == ("no video stream",)


def loudest(sound: Sound) -> float:
    """Return the frequency (Hz) with the most energy."""
    spectrum = np.abs(np.fft.rfft(sound.samples))
    return float(spectrum.argmax() * sound.rate / len(sound.samples))


def test_a_wave_is_read_as_mono_at_the_rate_asked_for(tmp_path: Path) -> None:
    import soundfile

    write_wave(tmp_path / "a.wav", tone(3, 1.5, 16_000))
    sound = read_wave(tmp_path / "a.wav", 22_050)
    assert (sound.rate, len(sound.samples), sound.faults) == (22_050, 33_075, ())
    assert sound.samples.dtype == np.float32
    np.testing.assert_allclose(sound.samples[500:-500], tone(3, 1.5, 22_050)[500:-500], atol=2e-3)
    stereo = np.stack([np.full(100, 0.5), np.full(100, -0.1)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_wave(tmp_path / "stereo.wav", 16_000).samples, 0.2, atol=1e-6)


@pytest.mark.parametrize(("suffix", "codec", "sound"), [("flv", "flv1", "libmp3lame"), ("mp4", "mpeg4", "aac")])
def test_a_sound_track_is_read_at_the_rate_asked_for(tmp_path: Path, suffix: str, codec: str, sound: str) -> None:
    write_video(tmp_path / f"a.{suffix}", 4, frames=45, codec=codec, sound=sound)
    found = read_track(tmp_path / f"a.{suffix}", 16_000)
    assert (found.rate, found.faults) == (16_000, ())
    assert found.seconds == pytest.approx(1.5, abs=0.15)
    assert loudest(found) == pytest.approx(pitch(4), abs=2)
    assert np.abs(found.samples).max() == pytest.approx(0.5, abs=0.1)


def test_silent_and_empty_sounds_are_faults(tmp_path: Path) -> None:
    write_wave(tmp_path / "silent.wav", np.zeros(800, np.float32))
    write_wave(tmp_path / "empty.wav", np.zeros(0, np.float32))
    assert read_wave(tmp_path / "silent.wav", 16_000).faults == ("silent",)
    assert read_wave(tmp_path / "empty.wav", 22_050).faults == ("no samples",)


def test_the_log_spectrogram_is_that_of_its_definition() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 66_150).astype(np.float32)
    padded = np.pad(samples.astype(np.float64), 256, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    frames = np.stack([padded[353 * t : 353 * t + 512] * window for t in range(188)])
    expected = np.log(np.abs(np.fft.rfft(frames)) + 1e-7).T
    found = log_spectrogram(Sound(samples, 22_050))
    assert (found.shape, found.dtype.name) == ((1, 257, 188), "float16")
    # Half precision keeps three digits; where waves cancel, the logarithm magnifies single precision's error.
    assert np.quantile(np.abs(found[0] - expected), 0.999) < 4e-3


def test_a_short_sound_is_repeated_to_three_seconds_and_a_long_one_cut() -> None:
    one, tiled = tone(0, 1.3, 22_050), np.tile(tone(0, 1.3, 22_050), 3)
    assert np.array_equal(log_spectrogram(Sound(one, 22_050)), log_spectrogram(Sound(tiled, 22_050)))
    assert np.array_equal(log_spectrogram(Sound(tiled, 22_050)), log_spectrogram(Sound(tiled[:66_150], 22_050)))


def mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(1127 * np.log(1 + np.asarray(hertz) / 700))


def test_the_filter_bank_is_that_of_its_definition() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    wave = samples.astype(np.float64) - samples.mean(dtype=np.float64)
    frames = np.stack([wave[160 * t : 160 * t + 400] for t in range(98)])
    frames -= frames.mean(axis=1, keepdims=True)
    frames -= 0.97 * np.pad(frames, ((0, 0), (1, 0)), mode="edge")[:, :-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    power = np.abs(np.fft.rfft(frames * window, 512)) ** 2
    edges = np.linspace(mel(20.0), mel(8000.0), 130)
    bins = mel(np.arange(257) * 16_000 / 512)
    up = (bins - edges[:-2, None]) / (edges[1] - edges[0])
    triangles = np.maximum(0, np.minimum(up, 2 - up))
    triangles[:, -1] = 0  # Kaldi leaves the highest frequency out
    expected = np.log(np.maximum(power @ triangles.T, np.finfo(np.float32).eps))
    found = filter_bank(Sound(samples, 16_000))
    assert (found.shape, found.dtype.name) == ((1, 1024, 128), "float16")
    np.testing.assert_allclose(found[0, :98], expected, atol=0.02)
    assert not found[0, 98:].any()


def test_a_sound_of_less_than_a_window_has_an_empty_filter_bank() -> None:
    assert not filter_bank(Sound(np.ones(399, np.float32), 16_000)).any()
    assert filter_bank(Sound(tone(0, 20, 16_000), 16_000))[0, 1023].any()


@pytest.mark.parametrize("transform", [log_spectrogram, filter_bank])
def test_a_sound_at_another_rate_is_refused(transform: object) -> None:
    assert callable(transform)
    with pytest.raises(ValueError, match="Found 8000 Hz"):
        transform(Sound(np.ones(100, np.float32), 8000))


def test_results_come_in_order_and_a_clip_that_takes_its_process_down_costs_only_itself() -> None:
    found = list(decode_all(decode_or_crash, range(8), crashed, jobs=2))
    assert [number for number, _ in found] == list(range(8))
    assert [number for number, process in found if process == -1] == [3]
    assert os.getpid() not in {process for _, process in found}


def test_no_more_clips_are_begun_than_can_wait() -> None:
    begun: list[int] = []

    def clips() -> Iterator[int]:
        for number in range(1000):
            begun.append(number)
            yield number

    with closing(decode_all(crashed, clips(), crashed, jobs=1)) as results:
        assert next(results) == (0, -1)
    assert len(begun) == 4


def test_the_report_counts_every_part_and_names_every_fault() -> None:
    splits = {
        "clean": {"a": "train", "b": "val", "c": "test", "d": "train"},
        "legacy": {"a": "test", "b": "", "c": "train", "d": "val"},
    }
    assert problem_report(splits, {"b": ["silent"], "c": ["one frame", "silent"], "a": ()}, missing=["d"]) == [
        "clean train: 2 clips expected, 1 found, 0 of them with faults",
        "clean val: 1 clips expected, 1 found, 1 of them with faults",
        "clean test: 1 clips expected, 1 found, 1 of them with faults",
        "legacy train: 1 clips expected, 1 found, 1 of them with faults",
        "legacy val: 1 clips expected, 0 found, 0 of them with faults",
        "legacy test: 1 clips expected, 1 found, 0 of them with faults",
        "b (clean val): silent",
        "c (clean test, legacy train): one frame; silent",
        "d (clean train, legacy val): no file",
    ]


def test_views_are_drawn_as_torchvision_draws_its_crops() -> None:
    torch.manual_seed(0)
    ours = draw_views(4000, 224, torch.Generator().manual_seed(1))
    blank = torch.empty(3, 224, 224)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], dtype=torch.float64
    )
    for own, other in zip((ours.top, ours.left, ours.height, ours.width), theirs.T, strict=True):
        quantiles = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
        assert (own.double().quantile(quantiles) - other.quantile(quantiles)).abs().max() < 6
    areas, other = (ours.height * ours.width).double(), theirs[:, 2] * theirs[:, 3]
    assert areas.mean() / 224**2 == pytest.approx(float(other.mean()) / 224**2, abs=0.015)
    assert areas.min() > 0.07 * 224**2
    assert ours.mirrored.double().mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("side", [48, 224])
def test_area_aspect_and_place_of_views_are_distributed_as_torchvisions(side: int) -> None:
    torch.manual_seed(0)
    ours = draw_views(3000, side, torch.Generator().manual_seed(1))
    blank = torch.empty(3, side, side)
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])

    def facts(top: Numbers, left: Numbers, height: Numbers, width: Numbers) -> dict[str, Numbers]:
        room = np.maximum(side - height, 1), np.maximum(side - width, 1)
        centre = (left + width / 2) / side
        return {"area": height * width, "aspect": width / height, "y": top / room[0], "x": left / room[1], "c": centre}

    own = facts(*(values.double().numpy() for values in (ours.top, ours.left, ours.height, ours.width)))
    other = facts(*theirs.T.astype(float))
    assert {name: ks_2samp(own[name], other[name]).pvalue > 0.01 for name in own} == dict.fromkeys(own, True)
    # Mirrored or not, a view is like any other.
    assert binomtest(int(ours.mirrored.sum()), 3000).pvalue > 0.01
    mirrored = ours.mirrored.numpy()
    assert ks_2samp(own["area"][mirrored], own["area"][~mirrored]).pvalue > 0.01


def test_views_are_drawn_on_the_cpu_and_cost_a_device_as_many_operations_for_any_number_of_samples() -> None:
    made: list[Any] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made.append(function)
            return function(*args, **(kwargs or {}))

    def operations(samples: int) -> int:
        frames = torch.empty(samples, 3, 2, 48, 48, device="meta")
        made.clear()
        with Count():  # type: ignore[no-untyped-call]
            views = draw_views(samples, 48, torch.Generator().manual_seed(0))
            assert views.top.device.type == "cpu"
            assert views.apply(frames).shape == frames.shape
            assert views.apply_flow(frames[:, :2]).shape == (samples, 2, 2, 48, 48)
        return len(made)

    assert operations(64) == operations(2)


def test_a_batch_cropped_at_once_as_on_a_gpu_is_the_one_cropped_sample_by_sample() -> None:
    frames = torch.rand(16, 3, 2, 48, 48)
    views = draw_views(16, 48, torch.Generator().manual_seed(3))
    at_once = views._at_once(frames.flatten(1, 2)).view_as(frames)
    torch.testing.assert_close(views.apply(frames), at_once, atol=1e-4, rtol=0)


def test_a_view_lies_inside_the_frame_at_any_size() -> None:
    for side in (1, 7, 224):
        views = draw_views(500, side, torch.Generator().manual_seed(0))
        assert (views.top >= 0).all()
        assert (views.left >= 0).all()
        assert (views.top + views.height <= side).all()
        assert (views.left + views.width <= side).all()


def test_a_view_is_torchvisions_resized_crop_of_every_frame() -> None:
    frames = torch.rand(6, 3, 2, 48, 48)
    views = draw_views(6, 48, torch.Generator().manual_seed(0))
    found = views.apply(frames)
    assert found.shape == frames.shape
    assert views.mirrored.unique().tolist() == [False, True]
    for sample in range(6):
        box = [int(values[sample]) for values in (views.top, views.left, views.height, views.width)]
        expected = resized_crop(frames[sample].transpose(0, 1), *box, [48, 48], antialias=False).transpose(0, 1)
        expected = expected.flip(-1) if views.mirrored[sample] else expected
        torch.testing.assert_close(found[sample], expected, atol=1e-4, rtol=0)


def test_the_whole_frame_is_left_as_it_is() -> None:
    frames = torch.rand(2, 3, 1, 32, 32)
    whole, start = torch.full((2,), 32), torch.zeros(2, dtype=torch.int64)
    same = Views(start, start, whole, whole, torch.tensor([False, True])).apply(frames)
    torch.testing.assert_close(same[0], frames[0])
    torch.testing.assert_close(same[1], frames[1].flip(-1))
