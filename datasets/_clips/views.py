"""The training view of clips: one random crop and flip per sample, shared by its frames and its streams."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Generator, Tensor
from torch.nn import functional

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


@dataclass(frozen=True)
class Views:
    """A crop per sample in pixels and whether it is mirrored: all (B,), int64 but for the bool `mirrored`."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    mirrored: Tensor

    def apply(self, frames: Tensor) -> Tensor:
        """Return every sample's crop of its frames (B, C, T, S, S) at full size, bilinear."""
        flat = frames.flatten(1, 2)
        # On the CPU one sample at a time, in the cache, takes half as long; elsewhere one operation does a batch.
        found = self._one_by_one(flat) if frames.device.type == "cpu" else self._at_once(flat)
        return found.view_as(frames)

    def apply_flow(self, flow: Tensor) -> Tensor:
        """Return every sample's crop of its flow (B, 2, T, S, S), horizontal first; what moves right then moves left.

        A change of sign is exact after normalisation too where the card fixes the zero, so that flow is only scaled. A
        crop does not change how fast anything moves.
        """
        cropped = self.apply(flow)
        cropped[:, 0] *= _sent(1 - 2 * self.mirrored.to(flow.dtype), flow.device).view(-1, 1, 1, 1)
        return cropped

    def _one_by_one(self, planes: Tensor) -> Tensor:
        side = planes.shape[-1]
        rows = _positions(self.top, self.height, side) - self.top[:, None]
        upper = rows.long()
        lower = torch.minimum(upper + 1, self.height[:, None] - 1)
        weight = (rows - upper).to(planes.dtype)[..., None]
        found = torch.empty_like(planes)
        boxes = (values.tolist() for values in (self.top, self.left, self.height, self.width, self.mirrored))
        for n, (top, left, height, width, mirrored) in enumerate(zip(*boxes, strict=True)):
            crop = planes[n, :, top : top + height, left : left + width]
            crop = crop.flip(-1) if mirrored else crop
            wide = functional.interpolate(crop, side, mode="linear", align_corners=False)
            torch.lerp(wide.index_select(1, upper[n]), wide.index_select(1, lower[n]), weight[n], out=found[n])
        return found

    def _at_once(self, planes: Tensor) -> Tensor:
        side = planes.shape[-1]
        rows = _positions(self.top, self.height, side)
        columns = _positions(self.left, self.width, side)
        columns = torch.where(self.mirrored[:, None], columns.flip(1), columns)
        # From pixels to what `grid_sample` counts in: -1 .. 1 from edge to edge.
        places = ((2 * torch.stack([columns, rows]) + 1) / side - 1).to(planes.dtype)
        x, y = _sent(places, planes.device)
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
        return functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)


def draw_views(count: int, side: int, generator: Generator) -> Views:
    """Draw crops of `side` x `side` frames as torchvision's RandomResizedCrop does, and flips with probability 1/2.

    The area is uniform between 8 and 100 %, the aspect ratio log-uniform between 3/4 and 4/3, ten attempts; then the
    whole frame. `generator` is on the CPU, and is spent alike whatever is drawn.
    """
    area, ratio, y, x, flip = torch.rand(5, count, ATTEMPTS, generator=generator, dtype=torch.float64)
    area = side**2 * (AREA[0] + area * (AREA[1] - AREA[0]))
    ratio = torch.exp(log(RATIO[0]) + ratio * (log(RATIO[1]) - log(RATIO[0])))
    width, height = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (width <= side) & (height <= side)
    first = fits.long().argmax(1, keepdim=True)
    never = ~fits.any(1)
    width, height, y, x = (values.gather(1, first)[:, 0] for values in (width, height, y, x))
    width, height = (values.masked_fill(never, side) for values in (width, height))
    top, left = (y * (side - height + 1)).long(), (x * (side - width + 1)).long()
    return Views(top, left, height, width, flip[:, 0] < 0.5)


def _positions(start: Tensor, length: Tensor, side: int) -> Tensor:
    """Return where the `side` output pixels lie in the input (B, side), inside the crop's own pixels."""
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    positions = start[:, None] + centres * length[:, None] - 0.5
    return torch.minimum(positions.clamp_min(start[:, None]), (start + length - 1)[:, None].double())


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device, without waiting until that has computed all it was given."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)
