"""What a preparation found wrong, in lines to print: nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmark.dataset import PARTS
from datasets._clips.frames import STILL


def problem_report(
    splits: Mapping[str, Mapping[str, str]], faults: Mapping[str, Sequence[str]], missing: Collection[str] = ()
) -> list[str]:
    """Return the counts of every part of every split, then one line per clip with faults.

    `splits` maps split to clip to part ("" for none) and lists every expected clip, `missing` those without a file;
    a clip is broken when it has `faults`.
    """
    lines = []
    for split, parts in splits.items():
        for part in PARTS:
            expected = {clip for clip, own in parts.items() if own == part}
            found = expected.difference(missing)
            broken = sum(bool(faults.get(clip)) for clip in found)
            lines.append(
                f"{split} {part}: {len(expected)} clips expected, {len(found)} found, {broken} of them with faults"
            )
    named = {clip: "; ".join(own) for clip, own in faults.items() if own} | dict.fromkeys(missing, "no file")
    for clip, text in sorted(named.items()):
        where = ", ".join(f"{split} {parts[clip]}" for split, parts in splits.items() if parts.get(clip))
        lines.append(f"{clip} ({where or 'in no split'}): {text}")
    return lines


def flow_report(levels: NDArray[np.int64]) -> str:
    """Return where most of the flow lies, from how often each of 256 levels occurs: the card's zero rests on it."""
    median = int(np.searchsorted(levels.cumsum(), levels.sum() / 2))
    return f"flow: median level {median}, {STILL} is no motion"
