"""Published weights of backbones: where their verified files lie, and how they are fitted to an encoder's channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from benchmark.dataset import Source
from benchmark.errors import DataError, unknown_name
from benchmark.paths import data_home
from benchmark.registry import BACKBONES


def weights_folder(backbone: str) -> Path:
    """Return where the fetched weights of a backbone lie."""
    return data_home() / "weights" / backbone


def pretrained(backbone: str, name: str, shape: tuple[int, ...]) -> Mapping[str, Tensor]:
    """Return the published state `name` of a backbone, for `Backbone.start` of an encoder of this shape.

    It is read once. Raises UsageError for an unknown name, and DataError for a file that is missing, has other bytes
    than were published, or does not hold one state of tensors by name.
    """
    found = BACKBONES.load(backbone)
    if name not in found.weights:
        raise unknown_name(f"weights of backbone {backbone!r}", name, found.weights)
    return _read(backbone, found.source(name, shape), weights_folder(backbone))


@cache
def _read(backbone: str, source: Source, folder: Path) -> Mapping[str, Tensor]:
    check = source.check(folder)
    if not check.complete:
        raise DataError(f"{backbone}: {check.faults()} in {folder}. Run `equipoise fetch {backbone}`.")
    try:
        content = torch.load(folder / source.file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        content = None
    # Beside their state, files may hold an epoch, an optimiser and the like.
    candidates = [content, *(content.values() if isinstance(content, Mapping) else ())]
    states = [value for value in candidates if _is_state(value)]
    if len(states) != 1:
        raise DataError(
            f"{backbone}: {source.file} holds {len(states) or 'no'} states instead of one, or more than plain data. "
            "Publish the weights as tensors by name."
        )
    return dict(states[0])


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def fitted(
    backbone: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, classifier: str, filters: str = ""
) -> dict[str, Tensor]:
    """Return a published `state` in the names and shapes of an encoder's `own`.

    Entries that start with `classifier` are dropped; `filters`, if given, names the kernel `(d, 3, h, w)` that reads
    RGB, which is fitted to the encoder's channels. Raises DataError with the entries that are missing, unexpected or of
    another shape.
    """
    found = {key: value.detach() for key, value in state.items() if not key.startswith(classifier)}
    if filters in found:
        found[filters] = for_channels(found[filters], own[filters].shape[1])
    shapes = (
        f"{key} {tuple(found[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in found and found[key].shape != own[key].shape
    )
    faults = {
        "missing": _some(key for key in own if key not in found),
        "unexpected": _some(key for key in found if key not in own),
        "of another shape": _some(shapes),
    }
    text = "; ".join(f"{what}: {which}" for what, which in faults.items() if which)
    if text:
        raise DataError(f"These weights do not fit backbone {backbone!r} ({text}). Use the published file as it is.")
    return found


def for_channels(kernel: Tensor, channels: int) -> Tensor:
    """Return a kernel `(d, 3, h, w)` that reads RGB as one `(d, channels, h, w)`; others are returned as they are.

    Every channel gets the mean over RGB, as TSN has it for flow (Wang et al., ECCV 2016), times 3 / channels, so that
    equal channels are answered as grey RGB is: a single channel gets the sum over RGB.
    """
    if kernel.ndim != 4 or kernel.shape[1] != 3 or channels == 3:
        return kernel
    return kernel.sum(1, keepdim=True).div(channels).repeat(1, channels, 1, 1)


def _some(items: Iterable[str], shown: int = 3) -> str:
    listed = list(items)
    more = [f"{len(listed) - shown} more"] if len(listed) > shown else []
    return ", ".join(listed[:shown] + more)
