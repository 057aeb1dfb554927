"""Residual networks, trained from scratch with the initialisation of the OGM-GE family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from benchmark.backbones import Backbone
from benchmark.backbones._frames import averaged, channels_and_frames, merged
from benchmark.backbones.weights import fitted
from benchmark.dataset import Checksum, Source


class ResNet18(Backbone):
    """ResNet-18 without its classifier for any number of input channels, 512 features (He et al., CVPR 2016).

    Convolutions start Kaiming-normal (fan out), batch norms at 1 and 0. The frames of a video are seen one by one and
    the last maps averaged over time and place, as OGM-GE does.
    """

    width = 512
    stage_widths = (64, 128, 256, 512)
    weights: ClassVar[Mapping[str, tuple[Source, ...]]] = {
        "imagenet": (
            Source(
                file="resnet18-f37072fd.pth",
                urls=("https://download.pytorch.org/models/resnet18-f37072fd.pth",),
                checksum=Checksum("f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", 46_830_571),
            ),
        )
    }

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        channels, self.frames = channels_and_frames("resnet18", shape)
        from torchvision.models import resnet18

        network = resnet18(weights=None)
        if channels != 3:
            network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        network.fc = nn.Identity()
        self.network = network
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stage(self, number: int, hidden: Tensor) -> Tensor:
        """Run the stem and `layer1` (stage 0), or `layer2` to `layer4`: maps `(B * T, c, h, w)`."""
        network = self.network
        if number == 0:
            hidden = network.maxpool(network.relu(network.bn1(network.conv1(merged(hidden, self.frames)))))
        after: Tensor = getattr(network, f"layer{number + 1}")(hidden)
        return after

    def pool(self, hidden: Tensor) -> Tensor:
        """Average the last maps over positions and frames: `(B, 512)`."""
        return averaged(self.network.avgpool(hidden).flatten(1), self.frames)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of torchvision's ResNet-18; other channels than RGB get the mean of its first filters."""
        own = self.network.state_dict()
        self.network.load_state_dict(fitted("resnet18", state, own, filters="conv1.weight", classifier="fc."))
