"""A stand-in for UCF-51: 18 clips of 3 actions in archives of the published layouts; the flow tells the action."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import av
import numpy as np

from datasets.ucf51 import FLOW, LISTS, UCF51, VIDEOS
from tests.datasets.lookalikes import Lookalike, single_files, write_video, write_zip

CLASSES = ("Archery", "HandstandPushups", "Knitting")
MOTION = ((168, 128), (88, 128), (128, 168))
"""Levels of u and v per class: to the right, to the left, down."""
TRUNCATED, WITHOUT_FLOW, WITHOUT_VIDEO = "v_Archery_g08_c01", "v_Archery_g08_c02", "v_Knitting_g08_c02"
FLOW_RATE = 24


def gray_video(levels: Sequence[int]) -> bytes:
    """Return an MP4 at 24 fps with one uniform frame per level."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FLOW_RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            image = np.full((48, 64), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="gray")))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_tar(file: Path, members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w:gz") -> None:
    with tarfile.open(file, mode) as bundle:
        for path, content in members.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            bundle.addfile(member, io.BytesIO(content))


def write_ucf51(folder: Path) -> Lookalike:
    """Write 3 actions x groups 1, 8 and 24 x 2 clips, and 2 of an action that is not among the 51.

    The first clip of Archery in group 8 is cut off in the middle and the second has no flow; the second of Knitting
    has no video. The files of one class are spelt otherwise in the lists, and otherwise again in the archives. The
    flow comes in another order than the videos, all of one direction before the other.
    """
    folder.mkdir(parents=True)
    names: list[str] = []
    videos: dict[str, bytes] = {}
    flow: dict[str, dict[str, bytes]] = {"x": {}, "y": {}}
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for label, action in enumerate((*CLASSES, "Basketball")):
        for number, (group, clip) in enumerate((g, c) for g in ("01", "08", "24") for c in ("01", "02")):
            name = f"v_{action.replace('stand', 'Stand')}_g{group}_c{clip}"
            stored = f"v_{action}_g{group}_c{clip}"
            rows["test" if group == "01" else "train"].append(f"{action}/{name}.avi")
            if label == 3 and number > 1:
                continue
            names += [name] if label < 3 else []
            file = folder / "clip.avi"
            write_video(file, label, 30 + number, codec="mpeg4")
            content = file.read_bytes()
            if name != WITHOUT_VIDEO:
                videos[f"UCF101/{stored}.avi"] = content[: len(content) // 2] if name == TRUNCATED else content
            if name != WITHOUT_FLOW:
                for axis, level in zip("xy", (*MOTION, (128, 88))[label], strict=True):
                    flow[axis][f"{stored}_flow_{axis}.mp4"] = gray_video([level] * (29 + number))
    file.unlink()
    write_zip(folder / VIDEOS, videos)
    write_tar(folder / FLOW, {path: flow[axis][path] for axis in "yx" for path in reversed(flow[axis])})
    lists = {
        "ucfTrainTestlist/trainlist01.txt": "".join(f"{row} 1\r\n" for row in rows["train"]),
        "ucfTrainTestlist/testlist01.txt": "".join(f"{row}\r\n" for row in rows["test"]),
        "__MACOSX/ucfTrainTestlist/._testlist01.txt": "junk",
    }
    write_zip(folder / LISTS, {path: text.encode() for path, text in lists.items()})
    card = replace(UCF51.card, sources=single_files(folder, VIDEOS, LISTS, FLOW), classes=CLASSES)
    return Lookalike(folder, tuple(sorted(names)), {UCF51: card})
