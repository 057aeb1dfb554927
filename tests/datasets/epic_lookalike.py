"""A stand-in for three kitchens of EPIC-Kitchens: 9 videos in archives of the published layouts, and their lists."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmark.dataset import Dataset, DatasetCard, Manifest, Source
from datasets.epic_kitchens import AUDIO, EpicKitchens
from datasets.epic_kitchens_flow import EpicKitchensFlow
from tests.datasets.hac_lookalike import MOTION, SHADE, SHAPES
from tests.datasets.lookalikes import NOWHERE, Lookalike, single_files, tone, write_wave, write_zip
from tests.datasets.ucf51_lookalike import write_tar

CLASSES = ("take", "put", "open")
VIDEOS = {
    ("D1", "train"): ("P08_01", "P08_02"),
    ("D1", "test"): ("P08_09",),
    ("D2", "train"): ("P01_01", "P01_02"),
    ("D2", "test"): ("P01_11",),
    ("D3", "train"): ("P22_05", "P22_06"),
    ("D3", "test"): ("P22_01",),
}
RATE, LENGTHS = 60, (10, 15, 16, 17, 40, 60)
"""Lengths of a video's segments in frames: below, at and above the 16 that a window of 8 spans."""
REDS = dict(zip(("D1", "D2", "D3"), SHADE.values(), strict=True))
TORN, MUTE = "P22_06", "P01_02"
"""A video whose archive lacks the frames from 200 on, and one without a recording."""
COLUMNS = ("uid", "start_frame", "stop_frame", "verb_class", "video_id", "start_timestamp", "stop_timestamp")


def starts() -> list[int]:
    """Return the first frame of each of a video's segments, which are ten frames apart."""
    return [1 + sum(LENGTHS[:place]) + 10 * place for place in range(len(LENGTHS))]


def jpeg(colour: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    mode = "RGB" if len(colour) == 3 else "L"
    Image.new(mode, (64, 36), colour if mode == "RGB" else colour[0]).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def label_at(frame: int) -> int:
    """Return the class of the segment that a frame is in or comes after; segments take turns."""
    return max(place for place, first in enumerate(starts()) if first <= frame) % len(CLASSES)


def timestamp(frame: int) -> str:
    return f"00:00:{(frame - 1) / RATE:05.2f}"


class _Stub:
    """An object of pandas in a pickle: its state and no behaviour."""

    def __init__(self, state: Any) -> None:
        self.content = state

    def __getstate__(self) -> Any:
        return self.content


class _Index:
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __reduce__(self) -> tuple[Any, ...]:
        module = sys.modules["pandas.core.indexes.base"]
        return module._new_Index, (module.Index, {"data": np.array(self.names, object), "name": None})


@contextmanager
def _pandas() -> Iterator[Mapping[str, type]]:
    """Give classes that are pickled under the names that pandas had when the lists were written."""
    index, held = types.ModuleType("pandas.core.indexes.base"), {}

    def new_index(kind: type, content: dict[str, Any]) -> None:
        raise AssertionError(f"rebuilt as {kind} of {content}")

    new_index.__name__ = new_index.__qualname__ = "_new_Index"
    modules = {"pandas.core.indexes.base": index}
    for path in ("pandas.core.frame.DataFrame", "pandas.core.internals.managers.BlockManager"):
        place, _, name = path.rpartition(".")
        kind = held[name] = type(name, (_Stub,), {"__module__": place})
        modules[place] = types.ModuleType(place)
        setattr(modules[place], name, kind)
    new_index.__module__ = _Index.__module__ = "pandas.core.indexes.base"
    for name, value in (("_new_Index", new_index), ("Index", type("Index", (), {"__module__": index.__name__}))):
        setattr(index, name, value)
    parents = {".".join(path.split(".")[:depth]) for path in modules for depth in (1, 2, 3)}
    modules = {name: types.ModuleType(name) for name in parents} | modules
    sys.modules.update(modules)
    try:
        yield held
    finally:
        for name in modules:
            del sys.modules[name]


def write_table(file: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Pickle a table as an old pandas did: numbers in one block, texts in another."""
    numbers = [name for name, values in columns.items() if isinstance(values[0], int)]
    texts = [name for name in columns if name not in numbers]
    blocks = [
        np.array([columns[name] for name in own], kind) for own, kind in ((numbers, np.int64), (texts, object)) if own
    ]
    with _pandas() as held:
        items = [_Index(own) for own in (numbers, texts) if own]
        state: tuple[Any, ...] = ([_Index(list(columns))], blocks, items, {"0.14.1": {"axes": [], "blocks": []}})
        frame = held["DataFrame"]({"_data": held["BlockManager"](state), "_typ": "dataframe", "_metadata": []})
        file.write_bytes(pickle.dumps(frame, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def write_epic(folder: Path) -> Lookalike:
    """Write 3 kitchens x (2 + 1) videos of 4 s; every video has 6 segments of 3 classes, one twice with two classes."""
    folder.mkdir(parents=True)
    recordings: dict[str, bytes] = {}
    rows: dict[str, list[tuple[Any, ...]]] = {f"{domain}_{listed}.pkl": [] for domain, listed in VIDEOS}
    last, number = starts()[-1] + LENGTHS[-1], 1000
    tars: dict[str, list[str]] = {"rgb": [], "flow": []}
    for (domain, listed), videos in VIDEOS.items():
        for video in videos:
            there = range(1, 200 if video == TORN else last + 1)
            rgb = {f"./frame_{n:010d}.jpg": jpeg((REDS[domain], 40 + 60 * label_at(n), n)) for n in there}
            flow = {
                f"{axis}/frame_{n:010d}.jpg": jpeg((MOTION[label_at(2 * n)][place],))
                for place, axis in enumerate("uv")
                for n in range(1, last // 2 + 2)
            }
            for stream, members in (("rgb", rgb), ("flow", flow)):
                path = f"frames_rgb_flow/{stream}/{listed}/{video[:3]}/{video}.tar"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                write_tar(folder / path, members, "w")
                tars[stream].append(path)
            sound = np.concatenate([tone(label_at(n), 1 / RATE, 16_020)[:267] for n in range(1, last + 61)])
            write_wave(folder / "clip.wav", sound, 16_020)
            if video != MUTE:
                recordings[f"rgb/{listed}/{domain}/{video}.wav"] = (folder / "clip.wav").read_bytes()
            for first, length in zip(starts(), LENGTHS, strict=True):
                stop = first + length
                number += 1
                row = (number, first, stop, label_at(first), video, timestamp(first), timestamp(stop))
                rows[f"{domain}_{listed}.pkl"].append(row)
        if (domain, listed) == ("D3", "train"):
            again = rows["D3_train.pkl"][-1]
            rows["D3_train.pkl"].append((number + 1000, *again[1:3], (again[3] + 1) % 3, *again[4:]))
    (folder / "clip.wav").unlink()
    write_zip(folder / AUDIO, recordings)
    for file, lines in rows.items():
        write_table(folder / file, dict(zip(COLUMNS, zip(*lines, strict=True), strict=True)))
    manifests = {}
    for stream, paths in tars.items():
        manifests[stream] = folder / f"{stream}.csv"
        lines_ = [f"{path},{hashlib.md5((folder / path).read_bytes()).hexdigest()}\n" for path in paths]
        manifests[stream].write_text("path,md5\n" + "".join(lines_))
    frames, flow_ = (
        Source(file=file, manifest=Manifest(manifests[stream], (f"{NOWHERE}/{{path}}",)))
        for file, stream in (("frames", "rgb"), ("flow", "flow"))
    )
    sources = (frames, *single_files(folder, AUDIO, *rows))
    cards: dict[type[Dataset], DatasetCard] = {
        kind: replace(
            kind.card, sources=(*sources, *more), classes=CLASSES, shapes={m: SHAPES[m] for m in kind.card.modalities}
        )
        for kind, more in ((EpicKitchens, ()), (EpicKitchensFlow, (flow_,)))
    }
    return Lookalike(folder, tuple(f"{row[4]}-{row[0]}" for own in rows.values() for row in own), cards)
