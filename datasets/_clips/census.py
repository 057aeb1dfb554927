"""How many clips of each part were expected, found and faulty: what prepared data and the tables made from them say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from benchmark.dataset import PARTS


def census(
    splits: Mapping[str, Mapping[str, str]], faults: Mapping[str, Sequence[str]], missing: Collection[str] = ()
) -> dict[str, dict[str, dict[str, int]]]:
    """Return by split and part how many clips are expected, found, and found with faults.

    `splits` maps split to clip to part ("" for none) and lists every expected clip, `missing` those without a file.
    """
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for split, parts in splits.items():
        for part in PARTS:
            expected = {clip for clip, own in parts.items() if own == part}
            found = expected.difference(missing)
            faulty = sum(bool(faults.get(clip)) for clip in found)
            counts.setdefault(split, {})[part] = {
                "expected": len(expected),
                "found": len(found),
                "with faults": faulty,
            }
    return counts
