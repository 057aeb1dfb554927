"""Stages of backbones, and what a gate between them needs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, vit_b_16

from benchmark.backbones import Backbone
from benchmark.conformance_task import Tiny
from benchmark.errors import UsageError
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


@pytest.mark.parametrize("name", ["resnet18", "vittiny"])
class TestVideo:
    @pytest.mark.parametrize("channels", [1, 2, 20])
    def test_a_video_has_the_mean_features_of_its_frames(self, name: str, channels: int) -> None:
        video = encoder(name, (channels, 3, 33, 40)).eval()
        images = encoder(name, (channels, 33, 40)).eval()
        inputs = torch.randn(2, channels, 3, 33, 40)
        expected = torch.stack([images(frame) for frame in inputs.unbind(2)]).mean(0)
        torch.testing.assert_close(video(inputs), expected, rtol=1e-4, atol=1e-5)

    def test_a_gate_between_stages_is_the_same_for_all_frames_of_a_sample(self, name: str) -> None:
        network = encoder(name, (1, 3, 16, 16)).eval()
        hidden = network.stage(0, torch.randn(2, 1, 3, 16, 16))
        gate = torch.rand(2, network.stage_widths[0])
        gated = network(network.excite(hidden, gate), first=1)
        first = encoder(name, (1, 16, 16)).eval()
        alone = torch.stack([first(first.excite(frame[None], gate[:1]), first=1) for frame in hidden[:3]]).mean(0)
        torch.testing.assert_close(gated[:1], alone, rtol=1e-4, atol=1e-5)

    def test_another_number_of_frames_never_mixes_samples(self, name: str) -> None:
        with pytest.raises(RuntimeError):
            encoder(name, (1, 2, 16, 16))(torch.randn(2, 1, 3, 16, 16))

    @pytest.mark.parametrize("shape", [(5,), (8, 8), (1, 2, 3, 8, 8)])
    def test_other_shapes_are_refused(self, name: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match=f"Backbone '{name}' needs samples .* Found .* Use another backbone"):
            BACKBONES.load(name)(shape)


def test_vit_is_torchvisions_up_to_the_class_token() -> None:
    network = encoder("vit", (3, 224, 224)).eval()
    torch.manual_seed(0)
    reference = vit_b_16(weights=None).eval()
    reference.heads = nn.Identity()
    inputs = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(network(inputs), reference(inputs))


def test_a_transformer_resizes_what_has_another_size() -> None:
    network = encoder("vittiny", (1, 129, 70)).eval()
    inputs = torch.randn(2, 1, 129, 70)
    resized = nn.functional.interpolate(inputs, (64, 64), mode="bilinear", antialias=True)
    assert torch.equal(network(inputs), network(resized))


def test_the_positions_of_patches_matter_to_a_transformer() -> None:
    network = encoder("vittiny", (1, 64, 64)).eval()
    inputs = torch.randn(1, 1, 64, 64)
    assert not torch.allclose(network(inputs), network(inputs.roll(8, 2)), atol=1e-4)


def test_a_patch_embedding_for_other_channels_starts_as_torchvisions() -> None:
    state = encoder("vit", (20, 8, 8)).state_dict()
    assert float(state["network.conv_proj.weight"].std()) == pytest.approx((20 * 16 * 16) ** -0.5, rel=0.02)
    assert not state["network.conv_proj.bias"].any()


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
