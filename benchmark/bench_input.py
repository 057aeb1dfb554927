"""`equipoise bench --input DATASET`: what a training epoch's input costs, against the way it is usually read.

The usual way is that of OGM-GE (Peng et al., CVPR 2022) and of what follows it: a PyTorch dataset that for every sample
opens JPEG frames of the video's own size, crops and mirrors each by torchvision's transforms, and turns the recording
into a spectrogram, in a DataLoader without workers. Ours are the batches that training sees. Both run on one CPU thread
and are measured in the process's own CPU time, taking turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from benchmark.bench import ratio
from benchmark.data import Part, place
from benchmark.errors import UsageError
from benchmark.memory import keep_freed_memory
from benchmark.paths import raw_home
from benchmark.preparation import obtain
from benchmark.registry import DATASETS

FLOOR = 8.0
"""Smallest accepted speed in the usual way's."""
BATCH = 64
CLIPS = 256
"""How many clips of the training part an epoch has at most."""
QUALITY = 95
VIDEOS = (".flv", ".mp4", ".avi", ".mkv", ".webm")
RATE, SECONDS, WINDOW, HOP = 22_050, 3, 512, 353
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Clip:
    """A sample as it is usually stored: JPEG frames and a WAV file."""

    frames: tuple[Path, ...]
    recording: Path
    label: int


class UsualClips(Dataset[tuple[Tensor, Tensor, int]]):
    """Clips as (spectrogram (1, 257, 188), frames (3, T, 224, 224), label), made when they are asked for."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        from torchvision import transforms

        self.clips = clips
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, DEVIATION),
            ]
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, int]:
        from PIL import Image

        clip = self.clips[number]
        frames = [self.transform(Image.open(file).convert("RGB")) for file in clip.frames]
        return spectrogram(clip.recording), torch.stack(frames, dim=1), clip.label


def spectrogram(recording: Path) -> Tensor:
    """Return the log spectrogram (1, 257, 188) of a recording's first 3 s, repeated up to that.

    With SciPy's polyphase filter and PyTorch's transform, which together take as long as librosa's resampling (soxr)
    and transform, or less.
    """
    import soundfile
    from scipy.signal import resample_poly

    samples, rate = soundfile.read(recording, dtype="float32")
    if rate != RATE:
        samples = resample_poly(samples, RATE, rate)
    wave = torch.from_numpy(np.resize(samples, RATE * SECONDS).astype(np.float32).clip(-1, 1))
    window = torch.hann_window(WINDOW)
    found = torch.stft(wave, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
    return torch.log(found.abs() + 1e-7)[None]


@dataclass(frozen=True)
class Speed:
    """How many times faster an epoch's input is than in the usual way; milliseconds of CPU time per clip of both."""

    frames: int
    clips: int
    kilobytes: float
    ours: float
    usual: float
    ratio: float

    @property
    def under(self) -> bool:
        """True when the speed is less than what is accepted."""
        return self.ratio < FLOOR

    def __str__(self) -> str:
        return (
            f"input of {self.clips} clips at {self.frames} frame{'s' * (self.frames > 1)}: {self.ours:.2f} ms each, "
            f"{self.ratio:.1f}x faster than JPEG ({self.kilobytes:.0f} kB) and WAV files ({self.usual:.2f} ms), "
            f"at least {FLOOR:.0f}x"
        )


def usual_clip(video: Path, recording: Path, label: int, frames: int, folder: Path) -> Clip | None:
    """Write a video's frames from the middles of equal segments as JPEG; None where none can be decoded."""
    import av
    from PIL import Image

    try:
        with av.open(str(video)) as container:
            images = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    except av.FFmpegError:
        return None
    files = [folder / f"{video.stem}_{number}.jpg" for number in range(frames)]
    for number, file in enumerate(files if images else []):
        images[(2 * number + 1) * len(images) // (2 * frames)].save(file, quality=QUALITY)
    return Clip(tuple(files), recording, label) if images else None


def speeds(dataset: str, rounds: int = 7) -> Iterator[Speed]:
    """Yield the speed at one frame and at all the dataset's frames, of a prepared dataset with `audio` and `video`.

    Its raw files must hold a WAV file and a video named after each sample: UsageError where they do not. An epoch has
    at most `CLIPS` of them.
    """
    entry = DATASETS.load(dataset)()
    prepared, split = obtain(dataset), entry.card.default_split
    files = list(raw_home(entry.card.raw_name).rglob("*"))
    recordings = {file.stem: file for file in files if file.suffix == ".wav"}
    videos = {file.stem: file for file in files if file.suffix in VIDEOS}
    ids = [prepared.index.ids[number] for number in (prepared.index.parts[split] == "train").nonzero()[0]]
    known = [number for number, name in enumerate(ids) if name in recordings and name in videos]
    if not known or set(entry.card.shapes) != {"audio", "video"}:
        raise UsageError(
            f"The raw files of {dataset!r} are no WAV files and videos named after its samples. Use one like cremad."
        )
    part = place(prepared, split, "cpu", entry.augment).parts["train"]
    with TemporaryDirectory() as folder:
        clips = {}
        for number in known[:CLIPS]:
            name = ids[number]
            clip = usual_clip(
                videos[name], recordings[name], int(part.labels[number]), part.shapes["video"][1], Path(folder)
            )
            if clip is not None:
                clips[number] = clip
        part = part.subset(torch.tensor(list(clips)))
        for frames in (1, part.shapes["video"][1]):
            yield speed(
                _first_frames(part, frames), [replace(c, frames=c.frames[:frames]) for c in clips.values()], rounds
            )


def _first_frames(part: Part, frames: int) -> Part:
    return replace(part, inputs={**part.inputs, "video": part.inputs["video"][:, :, :frames]})


def speed(part: Part, clips: Sequence[Clip], rounds: int) -> Speed:
    """Return how much faster the part's batches are than the same clips in the usual way."""
    keep_freed_memory()
    torch.manual_seed(0)  # the usual way draws its order and crops from the global generator
    loader = DataLoader(UsualClips(clips), batch_size=BATCH, shuffle=True, num_workers=0)
    generator = Generator().manual_seed(0)
    turns: dict[str, list[float]] = {"ours": [], "usual": []}

    def ours() -> float:
        return _seconds(part.batches(BATCH, order=generator, augment=generator), turns["ours"])

    def usual() -> float:
        return _seconds(iter(loader), turns["usual"])

    faster = ratio(usual, ours, rounds)
    each = {way: 1e3 * statistics.median(seconds) / len(clips) for way, seconds in turns.items()}
    sizes = [file.stat().st_size / 1e3 for clip in clips for file in clip.frames]
    return Speed(len(clips[0].frames), len(clips), statistics.mean(sizes), each["ours"], each["usual"], faster)


def _seconds(batches: Iterator[object], turns: list[float]) -> float:
    started = time.process_time()
    for _ in batches:
        pass
    turns.append(time.process_time() - started)
    return turns[-1]


def run(dataset: str, rounds: int) -> int:
    """Print the speeds of a dataset's input and how busy it keeps a GPU; return 1 if one is under its floor, else 0."""
    import click

    from benchmark.bench_busy import busy

    torch.set_num_threads(1)
    under = False
    for found in speeds(dataset, rounds):
        click.echo(str(found))
        under = under or found.under
    if torch.cuda.is_available():
        occupied = busy(dataset, rounds)
        click.echo(str(occupied))
        under = under or occupied.under
    return int(under)
