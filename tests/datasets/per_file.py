"""How clips are usually prepared, a file at a time: frames as JPEG by an ffmpeg process per clip, librosa per sample.

The yardstick for `equipoise prepare` on CREMA-D. Where there is no ffmpeg, a process per clip decodes with PyAV
instead, and where there is no librosa, scipy does the same arithmetic.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import wave
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.datasets.measured import cpu_seconds

RATE, SAMPLES, SIDE, FRAMES = 22_050, 66_150, 224, 3
FFMPEG = shutil.which("ffmpeg")
librosa: Any = importlib.import_module("librosa") if importlib.util.find_spec("librosa") else None


def tools() -> str:
    """Return what frames and spectrograms are made with."""
    return f"{'ffmpeg' if FFMPEG else 'PyAV'} and {'librosa' if librosa else 'scipy'}"


def seconds(recording: Path) -> float:
    with wave.open(str(recording)) as stream:
        length: float = stream.getnframes() / stream.getframerate()
        return length


def write_frames(video: Path, folder: Path, length: float) -> None:
    """Write the frames in the middle of three segments as JPEG: what ffmpeg's `fps` takes at three frames per video."""
    folder.mkdir(parents=True)
    if FFMPEG:
        rate = f"fps={FRAMES / length}"
        command = [FFMPEG, "-v", "error", "-i", str(video), "-vf", rate, "-q:v", "2", str(folder / "%d.jpg")]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return
    # Forked: a start of Python, which is several times that of ffmpeg, is not counted.
    process = get_context("fork").Process(target=_decode, args=(video, folder, length))
    process.start()
    process.join()


def _decode(video: Path, folder: Path, length: float) -> None:
    import av

    middles = [(number + 0.5) * length / FRAMES for number in range(FRAMES)]
    with av.open(str(video)) as container:
        last = None
        for frame in container.decode(video=0):
            while middles and last is not None and (frame.time or 0.0) > middles[0]:
                Image.fromarray(last.to_ndarray(format="rgb24")).save(
                    folder / f"{FRAMES - len(middles) + 1}.jpg", quality=95
                )
                del middles[0]
            last = frame


def read_frames(folder: Path) -> NDArray[np.uint8]:
    """Return the frames (3, T, 224, 224)."""
    files = [folder / f"{number + 1}.jpg" for number in range(FRAMES)]
    images = [Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for file in files]
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images], axis=1)


def spectrogram(recording: Path) -> NDArray[np.float16]:
    """Return log(|STFT| + 1e-7) of the first 3 s at 22,050 Hz, (1, 257, 188)."""
    if librosa:
        samples, _ = librosa.load(recording, sr=RATE)
        tiled = np.resize(samples, SAMPLES).clip(-1, 1)
        found = librosa.stft(tiled, n_fft=512, hop_length=353)
    else:
        import soundfile
        from scipy.signal import resample_poly, stft

        samples, rate = soundfile.read(recording, dtype="float32")
        tiled = np.resize(resample_poly(samples, RATE // 50, rate // 50), SAMPLES).clip(-1, 1)
        # Scipy divides by the sum of the window.
        found = 256 * stft(tiled, nperseg=512, noverlap=512 - 353, boundary="even", padded=False)[2]
    levels: NDArray[np.float16] = np.log(np.abs(found) + 1e-7).astype(np.float16)[None]
    return levels


def main(raw: Path, out: Path) -> dict[str, object]:
    """Prepare every clip below `raw`; returns the CPU time (s) of this process and those it started."""
    videos = sorted((raw / "VideoFlash").glob("*.flv"))
    spectrogram(raw / "AudioWAV" / f"{videos[0].stem}.wav")  # librosa loads most of itself at first use
    before = cpu_seconds()
    frames, sounds = [], []
    for video in videos:
        recording = raw / "AudioWAV" / f"{video.stem}.wav"
        write_frames(video, out / video.stem, seconds(recording))
        frames.append(read_frames(out / video.stem))
        sounds.append(spectrogram(recording))
    used = cpu_seconds() - before
    np.savez(out / "arrays.npz", video=np.stack(frames), audio=np.stack(sounds))
    return {"cpu": used, "clips": len(videos), "tools": tools()}


if __name__ == "__main__":
    json.dump(main(*map(Path, sys.argv[1:])), sys.stdout)
