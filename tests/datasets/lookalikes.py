"""Clips with real codecs, made in seconds: a class is a colour that moves and a pitch. CREMA-D is made of them here."""

from __future__ import annotations

import hashlib
import wave
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from benchmark.dataset import Checksum, Dataset, DatasetCard, Manifest, Source
from datasets.cremad import CREMAD
from datasets.cremad_fbank import CREMADFilterBank

WIDTH, HEIGHT, FRAME_RATE = 160, 120, 30
TRACK_RATE = 22_050
COLOURS = [(220, 40, 40), (40, 200, 40), (40, 40, 220), (220, 220, 40), (220, 40, 220), (40, 220, 220)]


def pitch(label: int) -> float:
    """Return the frequency (Hz) of a class's tone."""
    return 200.0 + 80 * label


def tone(label: int, seconds: float, rate: int) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * pitch(label) * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def picture(label: int, number: int) -> NDArray[np.uint8]:
    """Return frame `number` of a class: a square in its colour, 4 pixels further right in every frame, on grey."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    left = 4 * number % (WIDTH - 60)
    image[30:90, left : left + 60] = COLOURS[label % len(COLOURS)]
    return image


def write_wave(file: Path, samples: NDArray[np.float32], rate: int = 16_000) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes((samples * 32_767).astype("<i2").tobytes())


def write_video(
    file: Path,
    label: int,
    frames: int,
    *,
    codec: str = "flv1",
    sound: str | None = "libmp3lame",
    rate: int = TRACK_RATE,
    draw: Callable[[int, int], NDArray[np.uint8]] = picture,
) -> None:
    """Write `frames` frames of a class at 30 fps and, with a `sound` codec, as much of its tone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        video = container.add_stream(codec, rate=FRAME_RATE)
        assert isinstance(video, av.VideoStream)
        video.height, video.width = draw(label, 0).shape[:2]
        video.pix_fmt = "yuv420p"
        video.bit_rate = 1_000_000
        track = container.add_stream(sound, rate=rate, layout="mono") if sound else None
        for number in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(draw(label, number), format="rgb24")))
        container.mux(video.encode(None))
        if isinstance(track, av.AudioStream):
            samples = tone(label, frames / FRAME_RATE, rate)
            block = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            block.sample_rate = rate
            container.mux(track.encode(block))
            container.mux(track.encode(None))


def write_zip(file: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w") as bundle:
        for path, content in members.items():
            bundle.writestr(path, content)


def sums(file: Path) -> Checksum:
    return Checksum(hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size)


NOWHERE = "http://127.0.0.1:1"
"""Where nothing answers: what is fetched has to come from a mirror."""


@dataclass(frozen=True)
class Lookalike:
    """A dataset's files below `folder` in the published layout, the ids of its samples, and cards that describe them.

    `cards` are those of every dataset that reads these files: of one with flow, too. A source with a `suffix` is what a
    person brings: `folder` holds it beside the others.
    """

    folder: Path
    names: tuple[str, ...]
    cards: Mapping[type[Dataset], DatasetCard]

    def at(self, url: str) -> Lookalike:
        """Return the same with every file that is not brought by hand at its path below `url`."""
        cards = {
            kind: replace(card, sources=tuple(_moved(source, url) for source in card.sources))
            for kind, card in self.cards.items()
        }
        return replace(self, cards=cards)


def _moved(source: Source, url: str) -> Source:
    if source.manifest:
        return replace(source, manifest=replace(source.manifest, urls=(f"{url}/{{path}}",)))
    return source if source.suffix else replace(source, urls=(f"{url}/{source.file}",))


def single_files(folder: Path, *files: str) -> tuple[Source, ...]:
    """Return sources of single files below `folder`, known by their checksums."""
    return tuple(Source(file=file, urls=(f"{NOWHERE}/{file}",), checksum=sums(folder / file)) for file in files)


EMOTIONS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


def write_cremad(folder: Path) -> Lookalike:
    """Write 4 actors x 2 sentences x 6 emotions; pitch and colour tell the emotion.

    Of actor 1001 saying DFA: in ANG the video has one frame, in DIS it is unreadable, in FEA the recording is silent,
    in HAP it is that of NEU, and in SAD the video is three times as long.
    """
    names = [f"{a}_{s}_{e}_XX" for a in range(1001, 1005) for s in ("DFA", "IEO") for e in EMOTIONS]
    for number, name in enumerate(names):
        label, seconds = number % 6, 0.5 + number / 100
        video, recording = folder / f"VideoFlash/{name}.flv", folder / f"AudioWAV/{name}.wav"
        write_video(video, label, 1 if number == 0 else 45 if number == 5 else round(30 * seconds))
        write_wave(recording, tone(4, 0.54, 16_000) if number == 3 else tone(label, seconds, 16_000))
    (folder / "VideoFlash/1001_DFA_DIS_XX.flv").write_bytes(b"FLV\1" + bytes(300))
    write_wave(folder / "AudioWAV/1001_DFA_FEA_XX.wav", np.zeros(8000, np.float32))
    return listed_cremad(folder, names)


def listed_cremad(folder: Path, names: Sequence[str]) -> Lookalike:
    """Write the lists of clips that are below `folder`, which are at least 25."""
    # The actor of every list's clips is in another list too, as in the published ones.
    lists = {"train": [*names[:6], *names[12:]], "val": names[18:24], "test": names[6:12]}
    for part, members in lists.items():
        rows = "".join(f"{name},{name.split('_')[2]}\r\n" for name in members)
        (folder / f"{part}.csv").write_text(rows, newline="")
    paths = [
        f"{kind}/{name}.{suffix}" for kind, suffix in (("AudioWAV", "wav"), ("VideoFlash", "flv")) for name in names
    ]
    found = {path: sums(folder / path) for path in paths}
    manifest = folder / "manifest.csv"
    lines = [f"{path},{checksum.sha256},{checksum.size}" for path, checksum in found.items()]
    manifest.write_text("\n".join(["path,sha256,size", *lines]) + "\n")
    sources = (
        Source(file="clips", manifest=Manifest(manifest, (f"{NOWHERE}/{{path}}",))),
        *single_files(folder, *(f"{part}.csv" for part in lists)),
    )
    kinds: tuple[type[Dataset], ...] = (CREMAD, CREMADFilterBank)
    cards = {kind: replace(kind.card, sources=sources) for kind in kinds}
    return Lookalike(folder, tuple(sorted(names)), cards)
