"""SlowFast networks for video, with what stands beside them for flow and audio in domain generalisation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones import Backbone
from benchmark.backbones._frames import channels_and_frames
from benchmark.backbones.resnet import ResNet18
from benchmark.backbones.weights import fitted
from benchmark.dataset import Checksum, Source

ALPHA = 4
"""The slow pathway sees every fourth frame that the fast one sees (8 x 8 configurations)."""
BETA = 8
"""The fast pathway has an eighth of the slow one's channels."""
FUSED = 2
"""A lateral connection has twice the channels of the fast map that it reads."""
REACH = 7
"""Frames that a lateral connection reads at once (MMAction2's 8 x 8 configurations)."""
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks per stage by depth."""

PLAIN, RELEASED = "kinetics400_vggsound", "kinetics400_vggsound_released"


class _Unit(nn.Module):
    """A convolution without bias that keeps the number of frames, batch-normalised."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> None:
        super().__init__()
        frames, height, width = (size // 2 for size in kernel)
        self.conv = nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), (frames, height, width), bias=False)
        self.norm = nn.BatchNorm3d(outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(hidden))
        return normed


class _Block(nn.Module):
    """A bottleneck of `inner` channels that sees `frames` at once, with a residual connection: 4 * inner channels."""

    def __init__(self, inputs: int, inner: int, frames: int, stride: int, first: bool) -> None:
        super().__init__()
        self.reduce = _Unit(inputs, inner, (frames, 1, 1))
        self.mix = _Unit(inner, inner, (1, 3, 3), stride)
        self.expand = _Unit(inner, 4 * inner, (1, 1, 1))
        self.shortcut = _Unit(inputs, 4 * inner, (1, 1, 1), stride) if first else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        inner = functional.relu(self.mix(functional.relu(self.reduce(hidden))))
        return functional.relu(self.expand(inner) + self.shortcut(hidden))


class _Pathway(nn.Module):
    """A stem and four stages of bottlenecks, which keep the number of frames.

    `base` channels leave the stem, which sees `stem` frames at once; the blocks of a stage see `frames` of it. Every
    stage of a `fused` pathway is entered by a lateral connection's channels, too.
    """

    def __init__(self, channels: int, depth: int, base: int, stem: int, frames: tuple[int, ...], fused: bool) -> None:
        super().__init__()
        self.stem = _Unit(channels, base, (stem, 7, 7), 2)
        self.stages, width = nn.ModuleList(), base
        for number, (count, seen) in enumerate(zip(BLOCKS[depth], frames, strict=True)):
            entering, inner = width + (width * FUSED // BETA if fused else 0), base * 2**number
            width, stride = 4 * inner, 1 if number == 0 else 2
            first = _Block(entering, inner, seen, stride, first=True)
            rest = (_Block(width, inner, seen, 1, first=False) for _ in range(count - 1))
            self.stages.append(nn.Sequential(first, *rest))

    def enter(self, clips: Tensor) -> Tensor:
        """Map clips `(B, C, T, H, W)` to the map `(B, base, T, H / 4, W / 4)` before the first stage."""
        return functional.max_pool3d(functional.relu(self.stem(clips)), (1, 3, 3), (1, 2, 2), (0, 1, 1))


def _slow(channels: int, depth: int, fused: bool) -> _Pathway:
    return _Pathway(channels, depth, 64, 1, (1, 1, 3, 3), fused)


def published_name(key: str) -> str:
    """Return what MMAction2 calls the entry `key` of an encoder's state."""
    names = {"stem": "conv1", "reduce": "conv1", "mix": "conv2", "expand": "conv3", "shortcut": "downsample"}
    key = re.sub(
        r"^laterals\.(\d)\.", lambda m: f"slow.{'conv1' if m[1] == '0' else 'layer' + m[1]}_lateral.conv.", key
    )
    key = re.sub(r"^(slow|fast)\.", r"\1_path.", key.removeprefix("pathway."))
    key = re.sub(r"\bstages\.(\d)\.", lambda m: f"layer{int(m[1]) + 1}.", key)
    key = re.sub(rf"\b({'|'.join(names)})\.", lambda m: f"{names[m[1]]}.", key)
    return f"backbone.{key.replace('.norm.', '.bn.')}"


class _Pathways(Backbone):
    """An encoder of clips, whose last stage alone is trained when it starts from published weights."""

    name: ClassVar[str] = "slowfast"
    file: ClassVar[Source]

    def begin(self) -> None:
        """Draw convolutions Kaiming-normal (fan out); batch norms start at 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of MMAction2's network."""
        own = {published_name(key): (key, value) for key, value in self.state_dict().items()}
        found = fitted(self.name, state, {name: value for name, (_, value) in own.items()}, classifier="cls_head.")
        self.load_state_dict({own[name][0]: value for name, value in found.items()})

    def start(self, weights: str, state: Mapping[str, Tensor]) -> None:
        """Take over a state and freeze all but the last stage; as released, the frozen batch norms go on moving."""
        self.load(state)
        last = [path.stages[-1] for path in self.children() if isinstance(path, _Pathway)]
        self.freeze(*last, moving=weights == RELEASED)


class _Video(_Pathways):
    """Both pathways of depth 101, joined by lateral convolutions without batch norm as MMAction2 has them."""

    width = 2048 + 256
    depth: ClassVar[int] = 101
    file = Source(
        file="slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth",
        urls=(
            "https://download.openmmlab.com/mmaction/recognition/slowfast/slowfast_r101_8x8x1_256e_kinetics400_rgb/"
            "slowfast_r101_8x8x1_256e_kinetics400_rgb_20210218-0dd54025.pth",
        ),
        checksum=Checksum("0dd54025"),
    )

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.slow = _slow(shape[0], self.depth, fused=True)
        self.fast = _Pathway(shape[0], self.depth, 64 // BETA, 5, (3, 3, 3, 3), fused=False)
        self.laterals = nn.ModuleList(
            nn.Conv3d(c, FUSED * c, (REACH, 1, 1), (ALPHA, 1, 1), (REACH // 2, 0, 0), bias=False)
            for c in (8, 32, 64, 128)
        )
        self.begin()

    def forward(self, inputs: Tensor, first: int = 0) -> Tensor:
        """Map clips `(B, C, T, H, W)` to the averages of the last slow and fast maps, `(B, 2304)`."""
        slow, fast = self.slow.enter(inputs[:, :, ::ALPHA]), self.fast.enter(inputs)
        for lateral, own, quick in zip(self.laterals, self.slow.stages, self.fast.stages, strict=True):
            slow, fast = own(torch.cat([slow, lateral(fast)], 1)), quick(fast)
        return torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1)


class _Video50(_Video):
    """Both pathways of depth 50."""

    name = "slowfastr50"
    depth = 50
    file = Source(
        file="slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb_20220818-1cb6dfc8.pth",
        urls=(
            "https://download.openmmlab.com/mmaction/v1.0/recognition/slowfast/"
            "slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb/"
            "slowfast_r50_8xb8-8x8x1-256e_kinetics400-rgb_20220818-1cb6dfc8.pth",
        ),
        checksum=Checksum("1cb6dfc8"),
    )


class _Flow(_Pathways):
    """The slow pathway alone, of depth 50, which sees every frame that it is given."""

    width = 2048
    stage_widths = (256, 512, 1024, 2048)
    file = Source(
        file="slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth",
        urls=(
            "https://download.openmmlab.com/mmaction/recognition/slowonly/slowonly_r50_8x8x1_256e_kinetics400_flow/"
            "slowonly_r50_8x8x1_256e_kinetics400_flow_20200704-6b384243.pth",
        ),
        checksum=Checksum("6b384243"),
    )

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.pathway = _slow(shape[0], 50, fused=False)
        self.begin()

    def stage(self, number: int, hidden: Tensor) -> Tensor:
        """Run a stage, the first one after the stem: maps `(B, c, T, h, w)`."""
        after: Tensor = self.pathway.stages[number](hidden if number else self.pathway.enter(hidden))
        return after

    def pool(self, hidden: Tensor) -> Tensor:
        """Average the last map over frames and positions: `(B, 2048)`."""
        return hidden.mean((2, 3, 4))


class _Audio(ResNet18):
    """ResNet-18 for spectrograms, whose last stage alone is trained when it starts from published weights."""

    # Nobody publishes a checksum, and the server has no TLS: the first copy that is fetched is the one.
    file: ClassVar[Source] = Source(
        file="H.pth.tar",
        urls=("http://www.robots.ox.ac.uk/~vgg/data/vggsound/models/H.pth.tar",),
        checksum=Checksum(""),
    )

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of the VGGSound classifier with average pooling (Chen et al., ICASSP 2020)."""
        own = {f"audnet.{key}": value for key, value in self.network.state_dict().items()}
        found = fitted("slowfast", state, own, classifier="audnet.fc.")
        self.network.load_state_dict({key.removeprefix("audnet."): value for key, value in found.items()})

    def start(self, weights: str, state: Mapping[str, Tensor]) -> None:
        """Take over a state and freeze all but the last stage; as released, that stage stays as it was drawn."""
        last = self.network.layer4
        drawn = {key: value.clone() for key, value in last.state_dict().items()}
        self.load(state)
        if weights == RELEASED:
            last.load_state_dict(drawn)
        self.freeze(last)


class SlowFast(Backbone):
    """SlowFast-R101 8 x 8 for video, its slow pathway (R50) for flow, ResNet-18 for audio; 2304, 2048, 512 features.

    Feichtenhofer et al., ICCV 2019, in the layout of MMAction2. A sample of shape `(2, T, H, W)` is flow, any other
    `(C, T, H, W)` is video, and `(C, H, W)` a spectrogram or an image. Convolutions start Kaiming-normal (fan out).

    The weights are those of Kinetics-400 and, for audio, of VGGSound. From these only the last stage is trained, as in
    SimMMDG (Dong et al., NeurIPS 2023); what is below it, batch norms included, stays as published. `..._released` has
    what SimMMDG's code does: batch norms of video and flow move below the last stage, too, and the last stage of audio
    starts as drawn, because the code looks for `layer4` where the file says `audnet.layer4` and skips what it misses.
    """

    video: ClassVar[type[_Video]] = _Video
    weights: ClassVar[Mapping[str, tuple[Source, ...]]] = dict.fromkeys(
        (PLAIN, RELEASED), (_Video.file, _Flow.file, _Audio.file)
    )

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.encoder = self._kind(shape)(shape)
        self.width, self.stage_widths = self.encoder.width, self.encoder.stage_widths

    @classmethod
    def _kind(cls, shape: tuple[int, ...]) -> type[_Pathways | _Audio]:
        channels, _ = channels_and_frames(cls.__name__.lower(), shape)
        return _Audio if len(shape) == 3 else _Flow if channels == 2 else cls.video

    @classmethod
    def source(cls, weights: str, shape: tuple[int, ...]) -> Source:
        """Return the file for samples of this shape."""
        return cls._kind(shape).file

    def stage(self, number: int, hidden: Tensor) -> Tensor:
        """Run a stage of an encoder that has stages: those of flow and audio."""
        return self.encoder.stage(number, hidden)

    def pool(self, hidden: Tensor) -> Tensor:
        """Pool as the encoder does."""
        return self.encoder.pool(hidden)

    def forward(self, inputs: Tensor, first: int = 0) -> Tensor:
        """Map a batch, or the map before stage `first`, to features `(B, d)`."""
        features: Tensor = self.encoder(inputs, first)
        return features

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a published state for samples of this shape, all of which is trained."""
        self.encoder.load(state)

    def start(self, weights: str, state: Mapping[str, Tensor]) -> None:
        """Take over a published state for samples of this shape, and train the last stage alone."""
        self.encoder.start(weights, state)


class SlowFastR50(SlowFast, Backbone):
    """SlowFast-R50 8 x 8 for video; flow and audio as in `slowfast`."""

    # `Backbone` is named among the bases because the registry finds a backbone by that, without importing it.
    video = _Video50
    weights: ClassVar[Mapping[str, tuple[Source, ...]]] = dict.fromkeys(
        (PLAIN, RELEASED), (_Video50.file, _Flow.file, _Audio.file)
    )
