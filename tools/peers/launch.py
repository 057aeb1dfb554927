"""`python -m tools.peers.launch KIND FOLDER ARGUMENT...`: a peer's own script, an epoch per turn.

`FOLDER` is a copy of the clone, whose code runs as it is. What it is given that is not its own: the loaders, which on a
CPU have no processes of their own (its 32 would share one core) and say how long they are waited for; no evaluation;
and, without CUDA, the CPU for a GPU (`stand_ins`). The peer's own Python runs this.
"""

from __future__ import annotations

import importlib
import os
import platform
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils import data

from tools.peers import stand_ins
from tools.peers.turns import Turns, Watch, clock

T = TypeVar("T")

RATE, SECONDS, WINDOW, HOP = 22_050, 3, 512, 353
"""Of the spectrograms that OGM-GE makes for every sample, and BalanceBenchmark reads from files."""
SPECTROGRAMS = "Spectrogram"


def versions(*packages: str) -> dict[str, str]:
    """Return a contestant's first answer: its device, and the versions of Python, torch and those packages it has."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found = {"device": device, "python": platform.python_version(), "torch": torch.__version__}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def watched(watch: Watch) -> type[data.DataLoader[Any]]:
    """Return the DataLoader that says what it is waited for."""

    class Loader(data.DataLoader[Any]):
        def __init__(self, *given: Any, num_workers: int = 0, **options: Any) -> None:
            if torch.cuda.is_available():
                options["num_workers"] = min(num_workers, os.cpu_count() or 1)
            else:
                for name in ("pin_memory", "prefetch_factor", "multiprocessing_context"):
                    options.pop(name, None)
            super().__init__(*given, **options)

        def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
            return watch.timed(super().__iter__(), _size)

    return Loader


def _size(batch: Mapping[str, Any] | Sequence[Any]) -> int:
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])


def by_turns(train: Callable[..., T], turns: Turns, watch: Watch) -> Callable[..., T]:
    """Return the function that trains an epoch, made to wait for its turn and to answer."""

    def turn(*given: Any, **options: Any) -> T:
        turns.wait()
        result, answer = watch.epoch(lambda: train(*given, **options))
        turns.tell(**answer)
        return result

    return turn


def ogm_ge(turns: Turns, arguments: Sequence[str]) -> None:
    """Run OGM-GE's script."""
    watch = Watch()
    data.DataLoader = watched(watch)  # type: ignore[misc]
    script: Any = importlib.import_module("main")
    script.train_epoch = by_turns(script.train_epoch, turns, watch)
    script.valid = lambda *_: (0.0, 0.0, 0.0)
    sys.argv = ["main.py", *arguments]
    turns.tell(**versions("librosa"))
    script.main()


def balance(turns: Turns, arguments: Sequence[str]) -> None:
    """Run BalanceBenchmark's command."""
    watch = Watch()
    data.DataLoader = watched(watch)  # type: ignore[misc]
    if not torch.cuda.is_available():
        stand_ins.fabric_on_cpu()
    stand_ins.complete_balancemm()
    trainer: Any = importlib.import_module("balancemm.trainer.OGM_trainer").OGMTrainer
    trainer.train_loop = by_turns(trainer.train_loop, turns, watch)
    trainer.val_loop = lambda *_, **__: (0.0, {})
    sys.argv = ["balancemm", *arguments]
    turns.tell(**versions("lightning"))
    runpy.run_module("balancemm", run_name="__main__", alter_sys=True)


def frames(turns: Turns, arguments: Sequence[str]) -> None:
    """Extract frames with OGM-GE's script, and write for BalanceBenchmark the spectrograms that it only reads."""
    import numpy as np

    librosa: Any = importlib.import_module("librosa")  # in the peer's Python

    clips, rate = Path(arguments[0]), int(arguments[1])
    recordings = sorted((clips / "AudioWAV").glob("*.wav"))

    def spectrogram(recording: Path) -> torch.Tensor:
        samples, _ = librosa.load(recording, sr=RATE)
        found = librosa.stft(np.resize(samples, RATE * SECONDS).clip(-1, 1), n_fft=WINDOW, hop_length=HOP)
        return torch.from_numpy(np.log(np.abs(found) + 1e-7))

    extract = stand_ins.definitions(Path("data/CREMAD/video_preprocessing.py"))["CRAMED_dataset"]
    spectrogram(recordings[0])  # librosa loads most of itself at first use
    turns.tell(**versions("librosa", "opencv-python", "opencv-python-headless"))
    turns.wait()
    started = clock()
    extract(path_to_dataset=str(clips), frame_kept_per_second=rate).extractImage()
    extracted = clock()
    (clips / SPECTROGRAMS).mkdir()
    for recording in recordings:
        torch.save(spectrogram(recording), clips / SPECTROGRAMS / f"{recording.stem}.pt")
    turns.tell(frames=extracted - started, spectrograms=clock() - extracted)


def main(kind: str, folder: str, *arguments: str) -> None:
    """Become a peer in the copy of its clone."""
    turns = Turns()
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        stand_ins.on_cpu()
    os.chdir(folder)
    # Its own modules first; ours stay known for the processes of its loaders.
    sys.path = [folder, *sys.path[1:], sys.path[0]]
    {"ogm_ge": ogm_ge, "balance": balance, "frames": frames}[kind](turns, arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
