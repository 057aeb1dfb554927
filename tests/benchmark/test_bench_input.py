"""The figure: an epoch's input against JPEG and WAV files, on look-alike clips of CREMA-D."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmark.bench_input import RATE, SECONDS, Speed, spectrogram, speeds
from benchmark.cli import main
from benchmark.fetch import fetch
from benchmark.preparation import prepare
from datasets._clips.sound import log_spectrogram, read_wave
from datasets.cremad import CREMAD
from tests.datasets import lookalikes
from tests.datasets.lookalikes import tone, write_wave

Picture = Callable[[int, int], NDArray[np.uint8]]


def test_a_speed_below_eight_is_under() -> None:
    slow, fast = (Speed(3, 35, 22.0, 1.0, ratio, ratio) for ratio in (7.9, 8.0))
    assert slow.under
    assert not fast.under
    assert str(fast) == (
        "input of 35 clips at 3 frames: 1.00 ms each, 8.0x faster than JPEG (22 kB) and WAV files (8.00 ms), "
        "at least 8x"
    )


def test_the_usual_spectrogram_is_the_prepared_one_but_for_its_edges(tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    write_wave(file, tone(2, 1.1, 16_000))
    found = spectrogram(file)
    prepared = torch.from_numpy(log_spectrogram(read_wave(file, RATE))).float()
    assert found.shape == prepared.shape == (1, 257, 188)
    assert RATE * SECONDS == 66_150
    torch.testing.assert_close(found[..., 2:-2], prepared[..., 2:-2], atol=0.02, rtol=0)


def test_a_dataset_without_clips_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    assert main(["bench", "--input", "digits"]) == 2
    assert (
        "'digits' are no WAV files and videos named after its samples. Use one like cremad." in capsys.readouterr().err
    )


def as_a_camera_sees_it(picture: Picture) -> Picture:
    """Shading and grain: at the bit rate of the published videos a frame is then some 25 kB as JPEG, and not 4."""
    random = np.random.default_rng(0)
    grain = random.normal(0, 8, (8, 360, 480, 1))
    y, x = np.mgrid[:360, :480]
    shade = (30 * np.sin(x / 37) * np.cos(y / 29))[..., None]
    return lambda label, number: (picture(label, number) + shade + grain[number % 8]).clip(0, 255).astype(np.uint8)


LEAST = 5.0
"""What every machine reaches: `FLOOR` depends on how fast its memory is for what it computes."""


@pytest.mark.timing
def test_input_is_several_times_faster_than_from_jpeg_and_wav_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The size of the published videos.
    monkeypatch.setattr(lookalikes, "WIDTH", 480)
    monkeypatch.setattr(lookalikes, "HEIGHT", 360)
    camera = as_a_camera_sees_it(lookalikes.picture)
    monkeypatch.setattr(lookalikes, "write_video", partial(lookalikes.write_video, draw=camera))
    lookalike = lookalikes.write_cremad(tmp_path / "mirror" / "cremad")
    monkeypatch.setattr(CREMAD, "card", lookalike.cards[CREMAD])
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    fetch(CREMAD, tmp_path / "raw" / "cremad", tmp_path / "mirror")
    prepare("cremad", say=lambda _: None)
    found = list(speeds("cremad"))
    sys.stdout.write("".join(f"{speed}\n" for speed in found))
    assert [speed.frames for speed in found] == [1, 3]
    assert [str(speed) for speed in found if speed.ratio < LEAST] == []
