"""A small stand-in for the Free Spoken Digit Dataset: tones in the layout of its archive."""

from __future__ import annotations

import hashlib
import wave
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchmark.dataset import Checksum
from datasets.av_digits import AVDigits

SPEAKERS = ("jackson", "theo", "lucas", "yweweler", "george", "nicolas")
RATE = 8000


@dataclass(frozen=True)
class Spoken:
    """`raw` holds verified recordings; `mirror` holds an archive of them as `av_digits/v1.0.10.zip`."""

    raw: Path
    mirror: Path
    files: dict[str, Checksum]


def write_tone(file: Path, frequency: float, seconds: float) -> None:
    time = np.arange(round(RATE * seconds)) / RATE
    samples = (12_000 * np.sin(2 * np.pi * frequency * time)).astype("<i2")
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(RATE)
        stream.writeframes(samples.tobytes())


@pytest.fixture
def spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spoken:
    """144 recordings: every part of `av_digits` has some."""
    return stand_in(tmp_path, monkeypatch, range(12))


@pytest.fixture
def spoken_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spoken:
    """60 recordings: every part of `av_digits_dg` has some."""
    return stand_in(tmp_path, monkeypatch, (0, 9, 10, 15, 49))


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indices: Sequence[int]) -> Spoken:
    """2 digits x 6 speakers x `indices` of 0.2 to 1.2 s, and a manifest that av_digits takes for its own."""
    raw = tmp_path / "data" / "raw" / "av_digits"
    (raw / "recordings").mkdir(parents=True)
    files = {}
    for number, (digit, speaker, index) in enumerate(
        (digit, speaker, index) for digit in range(2) for speaker in SPEAKERS for index in indices
    ):
        path = f"recordings/{digit}_{speaker}_{index}.wav"
        # One frequency per digit; the length makes every recording different.
        write_tone(raw / path, 500 * (digit + 1), 0.2 + number / 143)
        content = (raw / path).read_bytes()
        files[path] = Checksum(hashlib.sha256(content).hexdigest(), len(content))
    mirror = tmp_path / "mirror"
    write_archive(mirror / "av_digits" / "v1.0.10.zip", {path: (raw / path).read_bytes() for path in files})
    monkeypatch.setitem(vars(AVDigits.card.sources[0].manifest), "files", files)
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path / "data"))
    return Spoken(raw, mirror, files)


def write_archive(file: Path, members: dict[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
        for path, content in {"README.md": b"speech", "recordings/.DS_Store": b"junk", **members}.items():
            bundle.writestr(f"free-spoken-digit-dataset-1.0.10/{path}", content)
