"""What a preparation found wrong, in lines to print: nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datasets._clips.census import census
from datasets._clips.frames import STILL

if TYPE_CHECKING:
    from benchmark.journal import ReadByRows


@dataclass(frozen=True)
class Note:
    """What is kept of a clip beside its arrays: its faults, and its frames per second, 0 where unknown.

    `found` says whether it has a file at all, `seen` and `heard` whether frames and sound of it are of use.
    """

    faults: tuple[str, ...] = ()
    rate: float = 0.0
    found: bool = True
    seen: bool = True
    heard: bool = True


def problem_report(
    splits: Mapping[str, Mapping[str, str]], faults: Mapping[str, Sequence[str]], missing: Collection[str] = ()
) -> list[str]:
    """Return the counts of every part of every split, then one line per clip with faults.

    `splits` maps split to clip to part ("" for none) and lists every expected clip, `missing` those without a file;
    a clip is broken when it has `faults`.
    """
    lines = [
        f"{split} {part}: {counts['expected']} clips expected, {counts['found']} found, "
        f"{counts['with faults']} of them with faults"
        for split, parts in census(splits, faults, missing).items()
        for part, counts in parts.items()
    ]
    named = {clip: "; ".join(own) for clip, own in faults.items() if own} | dict.fromkeys(missing, "no file")
    for clip, text in sorted(named.items()):
        where = ", ".join(f"{split} {parts[clip]}" for split, parts in splits.items() if parts.get(clip))
        lines.append(f"{clip} ({where or 'in no split'}): {text}")
    return lines


def flow_report(flow: ReadByRows) -> str:
    """Return where most of the flow (rows, 2, T, side, side) lies, as levels: the card's zero rests on it."""
    levels = np.zeros(256, np.int64)
    for row in range(flow.shape[0]):
        levels += np.bincount(flow[np.array([row])].ravel(), minlength=256)
    median = int(np.searchsorted(levels.cumsum(), levels.sum() / 2))
    return f"flow: median level {median}, {STILL} is no motion"
