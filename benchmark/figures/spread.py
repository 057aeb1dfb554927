"""Places for the labels of spots that crowd each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Place = tuple[float, float]
Circle = tuple[float, float, float]

_DIRECTIONS = 24
_RINGS = 40


def _candidates(circle: Circle, width: float, height: float) -> Iterator[Place]:
    """Yield centres around a circle (x, y, radius), ring by ring outwards, from the upper right on."""
    x, y, radius = circle
    for ring in range(_RINGS):
        for step in range(_DIRECTIONS):
            angle = math.pi / 4 + 2 * math.pi * step / _DIRECTIONS
            reach = radius + 1 + ring * height / 2
            yield x + math.cos(angle) * (reach + width / 2), y + math.sin(angle) * (reach + height / 2)


def _covered(place: Place, circle: Circle, width: float, height: float) -> bool:
    """Return whether a label at `place` touches the circle."""
    x, y, radius = circle
    across = max(abs(place[0] - x) - width / 2, 0)
    up = max(abs(place[1] - y) - height / 2, 0)
    return math.hypot(across, up) < radius


def spread(circles: Sequence[Circle], label: Place, box: Place) -> list[Place]:
    """Return a centre for each circle's label of size `label` inside (0, 0)-`box`, as near to it as the others allow.

    No two labels overlap and none covers a circle; where no such place is left, labels may cover circles.
    """
    width, height = label
    found: list[Place] = []
    for circle in circles:
        free = [
            place
            for place in _candidates(circle, width, height)
            if width / 2 <= place[0] <= box[0] - width / 2
            and height / 2 <= place[1] <= box[1] - height / 2
            and all(abs(place[0] - x) >= width or abs(place[1] - y) >= height for x, y in found)
        ]
        clear = (place for place in free if not any(_covered(place, other, width, height) for other in circles))
        found.append(next(clear, free[0] if free else circle[:2]))
    return found
