"""Vision transformers, trained from scratch with torchvision's initialisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones import Backbone
from benchmark.backbones._frames import averaged, channels_and_frames, merged
from benchmark.backbones.weights import fitted
from benchmark.dataset import Checksum, Source


class ViT(Backbone):
    """ViT-B/16 without its classifier for any number of input channels, 768 features (Dosovitskiy et al., ICLR 2021).

    Inputs are resized bilinearly to 224 x 224. The frames of a video are seen one by one and their class tokens
    averaged. Stages end after the blocks in `ends`.
    """

    width = 768
    stage_widths = (768, 768, 768)
    channels_last = True
    weights: ClassVar[Mapping[str, tuple[Source, ...]]] = {
        "imagenet": (
            Source(
                file="vit_b_16-c867db91.pth",
                urls=("https://download.pytorch.org/models/vit_b_16-c867db91.pth",),
                checksum=Checksum("c867db91d3e12c6cbadabb610d73c24a546bf82d8c03a9fea34f43a712ddb0e9"),
            ),
        )
    }
    ends: ClassVar[tuple[int, ...]] = (6, 9, 12)
    side: ClassVar[int] = 224
    patch: ClassVar[int] = 16
    heads: ClassVar[int] = 12
    hidden: ClassVar[int] = 3072

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        channels, self.frames = channels_and_frames(self._name, shape)
        from torchvision.models import VisionTransformer

        network = VisionTransformer(
            image_size=self.side,
            patch_size=self.patch,
            num_layers=self.ends[-1],
            num_heads=self.heads,
            hidden_dim=self.width,
            mlp_dim=self.hidden,
        )
        if channels != 3:
            network.conv_proj = nn.Conv2d(channels, self.width, self.patch, stride=self.patch)
            nn.init.trunc_normal_(network.conv_proj.weight, std=math.sqrt(1 / (channels * self.patch**2)))
            nn.init.zeros_(network.conv_proj.bias)
        network.heads = nn.Identity()
        self.network = network

    def stage(self, number: int, hidden: Tensor) -> Tensor:
        """Run the blocks up to `ends[number]`, in stage 0 after the embedding: tokens `(B * T, 1 + patches, d)`."""
        if number == 0:
            hidden = self._embed(merged(hidden, self.frames))
        first = self.ends[number - 1] if number else 0
        after: Tensor = self.network.encoder.layers[first : self.ends[number]](hidden)
        return after

    def pool(self, hidden: Tensor) -> Tensor:
        """Normalise the tokens and average the class tokens over the frames: `(B, d)`."""
        return averaged(self.network.encoder.ln(hidden)[:, 0], self.frames)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of torchvision's network; other channels than RGB get the mean of its patch filters."""
        # Older files number the layers of a block's perceptron, as the published one may; newer ones its modules.
        renamed = {
            key.replace("mlp.linear_1.", "mlp.0.").replace("mlp.linear_2.", "mlp.3."): value
            for key, value in state.items()
        }
        own = self.network.state_dict()
        filters, classifier = "conv_proj.weight", "heads."
        self.network.load_state_dict(fitted(self._name, renamed, own, filters=filters, classifier=classifier))

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def _embed(self, images: Tensor) -> Tensor:
        """Return the class token and the patches of images `(N, C, H, W)`, with their positions."""
        size = (self.side, self.side)
        if images.shape[2:] != size:
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        patches = self.network.conv_proj(images).flatten(2).transpose(1, 2)
        start = self.network.class_token.expand(len(patches), -1, -1)
        embedded: Tensor = torch.cat([start, patches], 1) + self.network.encoder.pos_embedding
        return embedded


class ViTTiny(ViT, Backbone):
    """A vision transformer of three blocks on 64 x 64 inputs with patches of 8, 64 features: for laptops and tests."""

    # `Backbone` is named among the bases because the registry finds a backbone by that, without importing it.
    width = 64
    stage_widths = (64, 64, 64)
    ends = (1, 2, 3)
    weights: ClassVar[Mapping[str, tuple[Source, ...]]] = {}
    side = 64
    patch = 8
    heads = 4
    hidden = 128
