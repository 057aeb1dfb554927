"""A stand-in for Kinetics-Sounds: 24 clips of 3 actions as a person may have them, and their published list."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from datasets.kinetics_sounds import CLIPS, LIST, KineticsSounds
from tests.datasets.lookalikes import Lookalike, single_files, write_video

LABELS = ("blowing_nose", "bowling", "tickling")
PUBLIC = ["training"] * 5 + ["validation"] + ["testing"] * 2
AWKWARD = ("-abc_DEF123", "__________A", "a_000001_00")
SECONDS = 0.8
MISSING, MUTE, TORN, REPLACED, MUTE_TEST, BLIND_TEST = 1, 2, 3, 4, 6, 14


def youtube(number: int) -> str:
    """Return the id of one of the 24 clips: 8 per class, the first three awkward."""
    return AWKWARD[number] if number < 3 else f"clip{number:02d}_-{number:03d}"


def name(number: int) -> str:
    return f"{youtube(number)}_{number:06d}"


def write_list(file: Path) -> None:
    """Write 3 classes x 8 clips as published: training clips with padded start and end, the others with the start."""
    file.parent.mkdir(parents=True, exist_ok=True)
    spelled = [
        f"{youtube(n)}_{n:06d}_{n + 10:06d}" if PUBLIC[n % 8] == "training" else f"{youtube(n)}_{n}" for n in range(24)
    ]
    rows = {text: {"subset": PUBLIC[n % 8], "label": LABELS[n // 8]} for n, text in enumerate(spelled)}
    file.write_text(json.dumps({"labels": LABELS, "database": rows}))


def write_clips(folder: Path) -> None:
    """Write the clips in folders of three layouts, as H.264 and AAC; some are missing, mute, torn or replaced."""
    for number in set(range(24)) - {MISSING}:
        stem = f"{youtube(number)}_{number:06d}_{number + 10:06d}"
        layout = [f"train/{LABELS[number // 8].replace('_', ' ')}/{stem}", f"val/{stem}", f"deep/er/test/{stem}"]
        file = folder / f"{layout[number % 3]}.mp4"
        sound = None if number in (MUTE, MUTE_TEST) else "aac"
        write_video(file, number // 8, round(30 * SECONDS), codec="libx264", sound=sound, rate=44_100)
        if number in (TORN, REPLACED):
            (folder / "x_replacement").mkdir(exist_ok=True)
            if number == REPLACED:
                (folder / "x_replacement" / file.name).write_bytes(file.read_bytes())
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        if number == BLIND_TEST:
            file.write_bytes(file.read_bytes().replace(b"avc1", b"nope"))
    (folder / "val" / "unlistedid0_000001_000011.mp4").write_bytes(b"another clip")
    (folder / "val" / f"{youtube(MISSING)}_000099_000109.mp4").write_bytes(b"another excerpt of a listed video")
    (folder / "val" / "k400_val_path.txt").write_text("no clip")


def write_kinetics_sounds(folder: Path) -> Lookalike:
    """Write the published list, and the clips that a person brings."""
    write_list(folder / LIST)
    write_clips(folder / CLIPS)
    _, clips = KineticsSounds.card.sources
    card = replace(KineticsSounds.card, sources=(*single_files(folder, LIST), clips))
    return Lookalike(folder, tuple(sorted(name(n) for n in set(range(24)) - {MISSING})), {KineticsSounds: card})
