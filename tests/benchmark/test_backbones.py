"""Stages of backbones, and what a gate between them needs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmark.backbones import Backbone
from benchmark.conformance_task import Tiny
from benchmark.registry import BACKBONES

SHAPE = (2, 20, 36)


def encoder(name: str, shape: tuple[int, ...] = SHAPE) -> Backbone:
    torch.manual_seed(0)
    return Tiny(8) if name == "tiny" else BACKBONES.load(name)(shape)


@pytest.mark.parametrize("name", ["tiny", *BACKBONES.names()])
class TestStages:
    def test_stopping_after_any_stage_and_going_on_changes_no_bit(self, name: str) -> None:
        network = encoder(name)
        inputs = torch.randn(2, *network.shape)
        whole, hidden = network(inputs), inputs
        assert network.stage_widths
        for number in range(len(network.stage_widths)):
            hidden = network.stage(number, hidden)
            assert torch.equal(network(hidden, first=number + 1), whole)

    def test_the_maps_have_the_stated_channels(self, name: str) -> None:
        network = encoder(name)
        hidden = torch.randn(2, *network.shape)
        for number, width in enumerate(network.stage_widths):
            hidden = network.stage(number, hidden)
            assert network.squeeze(hidden, 2).shape == (2, width)
            assert network.excite(hidden, torch.ones(2, width)).shape == hidden.shape


def test_passes_are_seen_by_a_hook_however_many_stages_ran_before() -> None:
    network, calls = encoder("small"), []
    network.register_forward_hook(lambda *_: calls.append(1))
    network(network.stage(0, torch.randn(2, *SHAPE)), first=1)
    assert len(calls) == 1


def test_resnet18_computes_what_torchvision_computes() -> None:
    reference = resnet18(weights=None)
    reference.fc = nn.Identity()
    network = encoder("resnet18", (3, 40, 33))
    reference.load_state_dict({key.removeprefix("network."): value for key, value in network.state_dict().items()})
    inputs = torch.randn(3, 3, 40, 33)
    assert torch.equal(network(inputs), reference(inputs))


class Last(Backbone):
    channels_last = True


# Three frames of two samples, four channels: sample 0 counts frames, sample 1 their negatives.
FRAMES = torch.tensor([1.0, 2, 3, -1, -2, -3]).repeat_interleave(4).reshape(6, 4)


def maps(last: bool) -> tuple[Backbone, Tensor]:
    if last:
        return Last((1,)), FRAMES[:, None].expand(6, 5, 4)
    return Backbone((1,)), FRAMES[:, :, None, None].expand(6, 4, 2, 3)


@pytest.mark.parametrize("last", [False, True])
class TestGates:
    def test_a_squeeze_averages_positions_and_frames_of_each_sample(self, last: bool) -> None:
        network, hidden = maps(last)
        assert torch.equal(network.squeeze(hidden, 2), torch.tensor([[2.0] * 4, [-2.0] * 4]))

    def test_an_excitation_reaches_every_frame_of_its_sample_and_no_other(self, last: bool) -> None:
        network, hidden = maps(last)
        gate = torch.tensor([[1.0, 2, 3, 4], [0, 1, 0, -1]])
        excited = network.excite(hidden, gate)
        assert excited.shape == hidden.shape
        expected = FRAMES * gate.repeat_interleave(3, 0)
        assert torch.equal(
            excited, expected[:, None].expand(6, 5, 4) if last else expected[:, :, None, None] + 0 * hidden
        )


@pytest.mark.parametrize("last", [False, True])
def test_flat_features_are_maps_without_positions(last: bool) -> None:
    network = (Last if last else Backbone)((1,))
    hidden, gate = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(network.squeeze(hidden, 2), hidden)
    assert torch.equal(network.excite(hidden, gate), hidden * gate)
