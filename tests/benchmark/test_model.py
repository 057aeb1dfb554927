"""Model and fusions: any number of modalities, unequal widths, unimodal logits for every fusion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmark.backbones import Backbone
from benchmark.errors import UsageError
from benchmark.model import MultimodalModel, parameter_group
from benchmark.registry import BACKBONES, FUSIONS

WIDTHS = {"audio": 6, "video": 4, "flow": 5}
ALL_FUSIONS = FUSIONS.names()


class Linear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.map = nn.Linear(3, width)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.map(inputs)
        return out


def model(fusion: str, names: tuple[str, ...] = ("audio", "video", "flow"), heads: bool = False) -> MultimodalModel:
    torch.manual_seed(0)
    return MultimodalModel({name: Linear(WIDTHS[name]) for name in names}, FUSIONS.load(fusion), 7, heads)


def inputs(names: tuple[str, ...] = ("audio", "video", "flow")) -> dict[str, Tensor]:
    return {name: torch.randn(5, 3) for name in names}


@pytest.mark.parametrize("fusion", ALL_FUSIONS)
@pytest.mark.parametrize("names", [("audio",), ("audio", "video"), ("audio", "video", "flow")])
def test_every_fusion_takes_any_number_of_modalities_of_unequal_width(fusion: str, names: tuple[str, ...]) -> None:
    network = model(fusion, names)
    prediction = network.predict(inputs(names))
    assert prediction.logits.shape == (5, 7)
    assert {name: logits.shape for name, logits in prediction.unimodal.items()} == dict.fromkeys(names, (5, 7))


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_unimodal_logits_of_additive_fusions_sum_to_the_fused_logits(fusion: str) -> None:
    prediction = model(fusion).predict(inputs())
    torch.testing.assert_close(sum(prediction.unimodal.values()), prediction.logits)


@pytest.mark.parametrize("fusion", ["film", "gated"])
def test_unimodal_logits_of_interacting_fusions_come_from_zeroing_the_others(fusion: str) -> None:
    network = model(fusion)
    features = network.encode(inputs())
    alone = {name: value if name == "audio" else torch.zeros_like(value) for name, value in features.items()}
    torch.testing.assert_close(network.unimodal_logits(features)["audio"], network.classify(alone))


@pytest.mark.parametrize("fusion", ALL_FUSIONS)
def test_a_modality_that_was_not_encoded_counts_as_zeros(fusion: str) -> None:
    network = model(fusion)
    features = network.encode(inputs())
    zeroed = {**features, "flow": torch.zeros_like(features["flow"])}
    without = {name: value for name, value in features.items() if name != "flow"}
    torch.testing.assert_close(network.classify(without), network.classify(zeroed))


@pytest.mark.parametrize("fusion", ALL_FUSIONS)
def test_the_slices_cover_the_head(fusion: str) -> None:
    network = model(fusion)
    parts = network.fusion.parts(network.encode(inputs()))
    for name, part in parts.items():
        columns = network.fusion.slices[name]
        assert columns.stop - columns.start == part.shape[1]
    assert max(columns.stop for columns in network.fusion.slices.values()) == network.head.in_features


def test_own_heads_answer_for_their_modality_and_are_initialised_last() -> None:
    plain, with_heads = model("concat"), model("concat", heads=True)
    assert all(torch.equal(value, with_heads.state_dict()[name]) for name, value in plain.state_dict().items())
    features = with_heads.encode(inputs())
    torch.testing.assert_close(
        with_heads.unimodal_logits(features)["video"], with_heads.unimodal_heads["video"](features["video"])
    )


def test_parameter_groups() -> None:
    groups = {parameter_group(name) for name, _ in model("film", heads=True).named_parameters()}
    assert groups == {"encoders", "fusion", "head"}
    assert parameter_group("unimodal_heads.audio.weight") == "head"


@pytest.mark.parametrize("name", BACKBONES.names())
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 129, 64), (3, 33, 40)])
def test_every_backbone_maps_images_to_its_width(name: str, shape: tuple[int, int, int]) -> None:
    encoder: Backbone = BACKBONES.load(name)(shape)
    encoder.eval()
    assert encoder(torch.randn(2, *shape)).shape == (2, encoder.width)


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 5, 8)])
def test_the_small_backbone_takes_strips_of_digits(shape: tuple[int, int, int]) -> None:
    encoder = BACKBONES.load("small")(shape)
    assert encoder(torch.randn(1, *shape)).shape == (1, 64)


@pytest.mark.parametrize("name", BACKBONES.names())
def test_a_backbone_refuses_a_shape_it_cannot_read(name: str) -> None:
    with pytest.raises(UsageError, match=r"needs samples of shape \(C, H, W\).*\. Found \(5,\)"):
        BACKBONES.load(name)((5,))


def test_resnet18_has_the_published_number_of_parameters_without_classifier() -> None:
    encoder = BACKBONES.load("resnet18")((3, 32, 32))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 11_689_512 - (512 * 1000 + 1000)


@pytest.mark.parametrize("fusion", ALL_FUSIONS)
def test_a_missing_modality_is_answered_from_zeros_in_its_place(fusion: str) -> None:
    network = model(fusion)
    features = network.encode(inputs())
    without = {name: torch.zeros_like(value) if name == "audio" else value for name, value in features.items()}
    torch.testing.assert_close(network.answer(features).missing["audio"], network.classify(without))


def test_a_model_of_one_modality_has_no_answer_without_it() -> None:
    assert model("concat", ("audio",)).predict(inputs(("audio",))).missing == {}


def test_vit_has_the_published_number_of_parameters_without_classifier() -> None:
    encoder = BACKBONES.load("vit")((3, 32, 32))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 86_567_656 - (768 * 1000 + 1000)
