"""A validation part out of a published training list, without near duplicates across the cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmark.dataset import hash_order


def held_out(groups: Sequence[str], strata: Sequence[int], share: float) -> list[bool]:
    """Return for every sample whether it is held out: whole groups are, in hash order, up to `share` of each stratum.

    A group belongs to the stratum of its first sample. One that would exceed the share is passed over; where all would,
    the first of several is taken.
    """
    sizes = Counter(groups)
    stratum = dict(zip(reversed(groups), reversed(strata), strict=True))
    names = list(stratum)
    ordered = [names[position] for position in hash_order(names)]
    taken: set[str] = set()
    for number in sorted(set(strata)):
        members = [name for name in ordered if stratum[name] == number]
        room = share * sum(sizes[name] for name in members)
        before = len(taken)
        for name in members:
            if sizes[name] <= room:
                room -= sizes[name]
                taken.add(name)
        if len(taken) == before and len(members) > 1:
            taken.add(members[0])
    return [group in taken for group in groups]
