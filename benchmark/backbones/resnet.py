"""Residual networks, trained from scratch with the initialisation of the OGM-GE family."""

from __future__ import annotations

from torch import Tensor, nn

from benchmark.backbones import Backbone
from benchmark.errors import UsageError


class ResNet18(Backbone):
    """ResNet-18 without its classifier for any number of input channels, 512 features (He et al., CVPR 2016).

    Convolutions start Kaiming-normal (fan out), batch norms at 1 and 0.
    """

    width = 512
    stage_widths = (64, 128, 256, 512)

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        if len(shape) != 3:
            raise UsageError(
                f"Backbone 'resnet18' needs samples of shape (C, H, W). Found {shape}. Use another backbone."
            )
        from torchvision.models import resnet18

        network = resnet18(weights=None)
        if shape[0] != 3:
            network.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
        network.fc = nn.Identity()
        self.network = network
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stage(self, number: int, hidden: Tensor) -> Tensor:
        """Run the stem and `layer1` (stage 0), or `layer2` to `layer4`: maps `(B, c, h, w)`."""
        network = self.network
        if number == 0:
            hidden = network.maxpool(network.relu(network.bn1(network.conv1(hidden))))
        after: Tensor = getattr(network, f"layer{number + 1}")(hidden)
        return after

    def pool(self, hidden: Tensor) -> Tensor:
        """Average the last map over its positions: `(B, 512)`."""
        features: Tensor = self.network.avgpool(hidden).flatten(1)
        return features
