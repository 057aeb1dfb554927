"""Only what is needed is decoded, and that is what decoding everything gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from datasets._clips import frames, packets
from datasets._clips.frames import Frames, frames_at
from tests.datasets.lookalikes import picture

LENGTH, RATE, SIDE = 120, 30, 56
MIDDLES = [(number + 0.5) / RATE for number in range(LENGTH)]


def write(file: Path, codec: str, **options: str) -> None:
    """Write four seconds with a key frame every second, or where an option says."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options={"g": "30", "sc_threshold": "0", **options})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = picture(0, 0).shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(LENGTH):
            frame = av.VideoFrame.from_ndarray(picture(number % 6, number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the packets that were decoded."""
    sizes: list[int] = []

    def counted(encoded: Iterable[Any]) -> Iterator[Any]:
        for packet in encoded:
            sizes.append(packet.size)
            yield packet

    decoded = packets.decoded
    monkeypatch.setattr(frames, "decoded", lambda encoded, errors: decoded(counted(encoded), errors))
    return sizes


def same(found: Frames, every: Frames, numbers: list[int]) -> bool:
    return np.array_equal(found.images, every.images[:, numbers]) and found.faults == every.faults == ()


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("flv", "flv1", {}),
        ("avi", "mpeg4", {"bf": "2"}),
        ("mp4", "libx264", {"bf": "3"}),
        ("mp4", "libx264", {"bf": "3", "x264-params": "open-gop=1"}),
        ("mp4", "mjpeg", {}),
    ],
)
def test_frames_of_a_few_times_are_those_of_all_and_take_a_few_packets(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], fed: list[int]
) -> None:
    write(tmp_path / f"clip.{suffix}", codec, **options)
    every = frames_at(tmp_path / f"clip.{suffix}", MIDDLES, SIDE)
    assert LENGTH <= len(fed) < 1.2 * LENGTH
    for numbers in ([35, 64, 95], [0, 29, 30, 119], [59], [60], [118, 118, 119], [*range(40, 104, 2)]):
        fed.clear()
        assert same(frames_at(tmp_path / f"clip.{suffix}", [MIDDLES[n] for n in numbers], SIDE), every, numbers)
        if numbers == [35, 64, 95]:
            assert len(fed) < LENGTH / 2


def test_a_video_with_one_key_frame_is_decoded_once_up_to_the_last_time(tmp_path: Path, fed: list[int]) -> None:
    write(tmp_path / "clip.flv", "flv1", g="600")
    every = frames_at(tmp_path / "clip.flv", MIDDLES, SIDE)
    fed.clear()
    assert same(frames_at(tmp_path / "clip.flv", [MIDDLES[n] for n in (20, 60, 100)], SIDE), every, [20, 60, 100])
    assert len(fed) <= 103


def test_damage_between_the_times_is_passed_over_and_damage_at_one_is_named(tmp_path: Path) -> None:
    write(tmp_path / "clip.flv", "flv1")
    every = frames_at(tmp_path / "clip.flv", MIDDLES, SIDE)
    content = bytearray((tmp_path / "clip.flv").read_bytes())
    hole = len(content) * 45 // LENGTH
    content[hole : hole + 200] = bytes(200)
    (tmp_path / "hole.flv").write_bytes(content)
    assert same(frames_at(tmp_path / "hole.flv", [MIDDLES[n] for n in (5, 65, 95)], SIDE), every, [5, 65, 95])
    assert "damaged" in frames_at(tmp_path / "hole.flv", [MIDDLES[n] for n in (5, 55, 95)], SIDE).faults[0]
