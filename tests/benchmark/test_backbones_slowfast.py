"""SlowFast, its slow pathway and the ResNet-18 beside them: published facts, published weights, what is trained."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.greedy import Greedy
from benchmark.backbones import Backbone
from benchmark.backbones.slowfast import PLAIN, RELEASED, SlowFast, SlowFastR50, published_name
from benchmark.errors import DataError, UsageError
from benchmark.task import Task

State = dict[str, Tensor]
Shape = tuple[int, ...]
VIDEO, FLOW, AUDIO = (3, 8, 32, 32), (2, 4, 32, 32), (1, 40, 33)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
CLASSIFIER = 400 * 2304 + 400


def on_meta(backbone: type[Backbone], shape: Shape) -> Backbone:
    with torch.device("meta"):
        return backbone(shape)


def units(path: str, depth: int, channels: int, base: int, frames: Shape, fused: int) -> Iterator[tuple[str, Shape]]:
    """Name and kernel of every convolution of a pathway, as MMAction2 has them; `fused`: channels that join in."""
    stem, *seen = frames
    yield f"{path}conv1", (base, channels, stem, 7, 7)
    width = base
    for stage, count in enumerate(BLOCKS[depth]):
        inner = base << stage
        for block in range(count):
            into = width + width * fused // 8 if block == 0 else width
            name = f"{path}layer{stage + 1}.{block}"
            if block == 0:
                yield f"{name}.downsample", (4 * inner, into, 1, 1, 1)
            yield f"{name}.conv1", (inner, into, seen[stage], 1, 1)
            yield f"{name}.conv2", (inner, inner, 1, 3, 3)
            yield f"{name}.conv3", (4 * inner, inner, 1, 1, 1)
            width = 4 * inner


def layout(depth: int = 50, *, flow: bool = False) -> dict[str, Shape]:
    """Names and shapes of a state of MMAction2's network, made from the published scheme alone."""
    slow, fast = (1, 1, 1, 3, 3), (5, 3, 3, 3, 3)
    if flow:
        found = [*units("", depth, 2, 64, slow, 0)]
    else:
        found = [*units("slow_path.", depth, 3, 64, slow, 2), *units("fast_path.", depth, 3, 8, fast, 0)]
    shapes: dict[str, Shape] = {"cls_head.fc_cls.weight": (400, 2304), "cls_head.fc_cls.bias": (400,)}
    for name, kernel in found:
        shapes[f"backbone.{name}.conv.weight"] = kernel
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"backbone.{name}.bn.{entry}"] = kernel[:1]
        shapes[f"backbone.{name}.bn.num_batches_tracked"] = ()
    for name, fewer in () if flow else (("conv1", 8), ("layer1", 32), ("layer2", 64), ("layer3", 128)):
        shapes[f"backbone.slow_path.{name}_lateral.conv.weight"] = (2 * fewer, fewer, 7, 1, 1)
    return shapes


@cache
def published(flow: bool = False) -> State:
    """A random state of depth 50 in that layout."""
    draw = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in layout(flow=flow).items():
        if len(shape) > 1:
            state[name] = torch.randn(shape, generator=draw) / shape[1] ** 0.5
        else:
            low = 0.5 if name.endswith(("weight", "var")) else -0.5
            state[name] = torch.rand(shape, generator=draw) + low if shape else torch.tensor(5)
    return state


def computed(state: State, clips: Tensor, depth: int) -> Tensor:
    """What the published state computes, written out over its names."""

    def unit(name: str, hidden: Tensor, stride: int = 1) -> Tensor:
        kernel = state[f"backbone.{name}.conv.weight"]
        padding = [size // 2 for size in kernel.shape[2:]]
        hidden = functional.conv3d(hidden, kernel, stride=(1, stride, stride), padding=padding)
        mean, var, weight, bias = (
            state[f"backbone.{name}.bn.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(hidden, mean, var, weight, bias)

    def stem(path: str, hidden: Tensor) -> Tensor:
        return functional.max_pool3d(unit(f"{path}.conv1", hidden, 2).relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))

    def stage(path: str, number: int, hidden: Tensor) -> Tensor:
        for block in range(BLOCKS[depth][number - 1]):
            name, stride = f"{path}.layer{number}.{block}", 2 if number > 1 and block == 0 else 1
            inner = unit(f"{name}.conv2", unit(f"{name}.conv1", hidden).relu(), stride).relu()
            hidden = unit(f"{name}.downsample", hidden, stride) if block == 0 else hidden
            hidden = (unit(f"{name}.conv3", inner) + hidden).relu()
        return hidden

    slow, fast = stem("slow_path", clips[:, :, ::4]), stem("fast_path", clips)
    for number, lateral in enumerate(("conv1", "layer1", "layer2", "layer3"), 1):
        kernel = state[f"backbone.slow_path.{lateral}_lateral.conv.weight"]
        joined = torch.cat([slow, functional.conv3d(fast, kernel, stride=(4, 1, 1), padding=(3, 0, 0))], 1)
        slow, fast = stage("slow_path", number, joined), stage("fast_path", number, fast)
    return torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1)


@cache
def vggsound() -> State:
    """A random state in the layout of the VGGSound classifier."""
    torch.manual_seed(5)
    state = {"fc.weight": torch.zeros(309, 512), "fc.bias": torch.zeros(309)}
    for key, value in SlowFastR50(AUDIO).state_dict().items():
        drawn = value + 0.1 * torch.rand_like(value) if value.ndim == 1 else value
        state[key.removeprefix("encoder.network.")] = drawn if value.ndim else torch.tensor(5)
    return {f"audnet.{key}": value for key, value in state.items()}


STATES: dict[Shape, Callable[[], State]] = {VIDEO: published, FLOW: lambda: published(flow=True), AUDIO: vggsound}


@cache
def fresh(shape: Shape) -> Backbone:
    torch.manual_seed(0)
    return SlowFastR50(shape).eval()


@cache
def started(shape: Shape, weights: str = PLAIN) -> Backbone:
    encoder = copy.deepcopy(fresh(shape))
    encoder.start(weights, STATES[shape]())
    return encoder


class TestPublishedFacts:
    def test_depth_50_has_the_published_parameters(self) -> None:
        network = on_meta(SlowFastR50, (3, 32, 224, 224))
        # PyTorchVideo counts 34,566,488 and normalises what its lateral connections give, which MMAction2 does not.
        norms = 2 * (16 + 64 + 128 + 256)
        assert sum(p.numel() for p in network.parameters()) + CLASSIFIER == 34_566_488 - norms

    def test_depth_101_has_the_published_parameters(self) -> None:
        network = on_meta(SlowFast, (3, 32, 224, 224))
        assert round((sum(p.numel() for p in network.parameters()) + CLASSIFIER) / 1e6, 1) == 62.9

    def test_the_audio_network_has_the_published_parameters(self) -> None:
        network = on_meta(SlowFast, (1, 257, 1004))
        assert sum(p.numel() for p in network.parameters()) + 309 * 512 + 309 == 11_328_757

    @pytest.mark.parametrize(
        ("backbone", "shape", "entries"), [(SlowFastR50, VIDEO, 642), (SlowFast, VIDEO, 1254), (SlowFast, AUDIO, 122)]
    )
    def test_states_have_the_published_number_of_entries(
        self, backbone: type[Backbone], shape: Shape, entries: int
    ) -> None:
        assert len(on_meta(backbone, shape).state_dict()) + 2 == entries

    @pytest.mark.parametrize("backbone", [SlowFast, SlowFastR50])
    def test_maps_have_the_published_shapes(self, backbone: type[SlowFast]) -> None:
        network = on_meta(backbone, (3, 32, 224, 224))
        maps: dict[str, Shape] = {}
        for path, number in product(("slow", "fast"), range(4)):
            network.get_submodule(f"encoder.{path}.stages.{number}").register_forward_hook(
                lambda _module, inputs, output, key=f"{path} {number}": maps.update(
                    {f"into {key}": tuple(inputs[0].shape[1:]), key: tuple(output.shape[1:])}
                )
            )
        assert network(torch.empty(2, 3, 32, 224, 224, device="meta")).shape == (2, 2304)
        assert [maps[f"into slow {k}"][0] for k in range(4)] == [80, 320, 640, 1280]
        assert maps["into slow 3"] == (1280, 8, 14, 14)
        assert maps["into fast 3"] == (128, 32, 14, 14)
        assert [maps[f"slow {k}"] for k in range(4)] == [(256 << k, 8, 56 >> k, 56 >> k) for k in range(4)]
        assert [maps[f"fast {k}"] for k in range(4)] == [(32 << k, 32, 56 >> k, 56 >> k) for k in range(4)]


class TestKinds:
    def test_the_shape_of_a_sample_decides_on_its_encoder(self) -> None:
        assert [on_meta(SlowFast, shape).width for shape in (VIDEO, FLOW, AUDIO)] == [2304, 2048, 512]
        files = [SlowFast.source(PLAIN, shape).file.partition("_")[0] for shape in (VIDEO, FLOW, AUDIO)]
        assert files == ["slowfast", "slowonly", "H.pth.tar"]
        assert SlowFastR50.source(PLAIN, VIDEO) != SlowFast.source(PLAIN, VIDEO)
        assert SlowFastR50.source(PLAIN, AUDIO) == SlowFast.source(PLAIN, AUDIO)

    @pytest.mark.parametrize("shape", [(5,), (8, 8), (1, 2, 3, 8, 8)])
    @pytest.mark.parametrize("backbone", [SlowFast, SlowFastR50])
    def test_other_shapes_are_refused(self, backbone: type[Backbone], shape: Shape) -> None:
        with pytest.raises(UsageError, match=f"'{backbone.__name__.lower()}' needs samples .* Use another backbone"):
            backbone(shape)

    def test_a_method_that_gates_stages_is_refused_for_video(self) -> None:
        task = Task({"video": VIDEO, "flow": FLOW, "audio": AUDIO}, 2, 1, lambda _, shape: SlowFastR50(shape))
        assert "found none for video; use" in (Greedy.refuses(Greedy.Options(), task) or "")

    def test_flow_has_stages(self) -> None:
        network = fresh(FLOW)
        inputs = torch.randn(2, *FLOW)
        whole, hidden = network(inputs), inputs
        for number, width in enumerate(network.stage_widths):
            hidden = network.stage(number, hidden)
            assert network.squeeze(hidden, 2).shape == (2, width)
            assert torch.equal(network(hidden, first=number + 1), whole)
        assert hidden.shape == (2, 2048, 4, 1, 1)

    @pytest.mark.parametrize("frames", [1, 6, 8])
    def test_any_number_of_frames_is_read(self, frames: int) -> None:
        assert fresh(VIDEO)(torch.randn(1, 3, frames, 32, 32)).shape == (1, 2304)

    def test_the_slow_pathway_sees_every_fourth_frame_and_the_rest_by_lateral_connections(self) -> None:
        network = copy.deepcopy(fresh(VIDEO))
        clips = torch.randn(1, *VIDEO)
        changed = clips.clone()
        changed[:, :, [1, 2, 3, 5, 6, 7]] += 1

        def slow_features_agree() -> bool:
            return torch.equal(network(clips)[:, :2048], network(changed)[:, :2048])

        assert not slow_features_agree()
        for name, parameter in network.named_parameters():
            if "laterals" in name:
                nn.init.zeros_(parameter)
        assert slow_features_agree()
        assert not torch.equal(network(clips)[:, 2048:], network(changed)[:, 2048:])


class TestPublishedStates:
    @pytest.mark.parametrize(
        ("backbone", "shape", "expected"),
        [(SlowFastR50, VIDEO, layout(50)), (SlowFast, VIDEO, layout(101)), (SlowFast, FLOW, layout(flow=True))],
    )
    def test_every_entry_has_its_published_name_and_shape(
        self, backbone: type[Backbone], shape: Shape, expected: dict[str, Shape]
    ) -> None:
        own = on_meta(backbone, shape).state_dict()
        ours = {published_name(key.removeprefix("encoder.")): tuple(value.shape) for key, value in own.items()}
        assert len(ours) == len(own)
        assert ours == {key: value for key, value in expected.items() if key.startswith("backbone.")}

    def test_a_loaded_network_computes_what_the_published_state_says(self) -> None:
        state, network = published(), started(VIDEO)
        clips = torch.randn(2, *VIDEO)
        with torch.no_grad():
            found, expected = network(clips), computed(state, clips, 50)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))

    def refusal(self, shape: Shape, state: State) -> str:
        with pytest.raises(DataError) as caught:
            on_meta(SlowFastR50, shape).start(PLAIN, state)
        return str(caught.value)

    def test_a_missing_entry_is_refused_by_its_published_name(self) -> None:
        state, gone = dict(published()), "backbone.slow_path.layer2_lateral.conv.weight"
        del state[gone]
        assert self.refusal(VIDEO, state) == (
            f"These weights do not fit backbone 'slowfastr50' (missing: {gone}). Use the published file as it is."
        )

    def test_the_state_of_a_deeper_network_is_refused(self) -> None:
        refusal = self.refusal(VIDEO, {key: torch.empty(shape, device="meta") for key, shape in layout(101).items()})
        assert re.search(r"\(unexpected: backbone\.slow_path\.layer3\.6\.conv1\.conv\.weight, .* 609 more\)", refusal)

    def test_the_state_of_another_kind_is_refused(self) -> None:
        assert "missing: backbone.conv1.conv.weight, " in self.refusal(FLOW, published())

    def test_an_audio_state_without_its_prefix_is_refused_where_the_released_code_skips_it(self) -> None:
        state = {key.removeprefix("audnet."): value for key, value in vggsound().items()}
        refusal = self.refusal(AUDIO, state)
        assert "(missing: audnet.conv1.weight, audnet.bn1.weight, audnet.bn1.bias, 117 more; unexpected: " in refusal

    def test_audio_weights_do_not_fit_colour_images(self) -> None:
        refusal = self.refusal((3, 32, 32), vggsound())
        assert "audnet.conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7)" in refusal


LAST: dict[Shape, tuple[str, ...]] = {
    VIDEO: ("encoder.slow.stages.3.", "encoder.fast.stages.3."),
    FLOW: ("encoder.pathway.stages.3.",),
    AUDIO: ("encoder.network.layer4.",),
}


@pytest.mark.parametrize("weights", [PLAIN, RELEASED])
@pytest.mark.parametrize("shape", [VIDEO, FLOW, AUDIO])
class TestTraining:
    def test_the_last_stage_alone_has_parameters(self, shape: Shape, weights: str) -> None:
        names = {name for name, _ in fresh(shape).named_parameters()}
        encoder = started(shape, weights)
        assert {name for name, _ in encoder.named_parameters()} == {
            name for name in names if name.startswith(LAST[shape])
        }
        assert encoder.state_dict().keys() == fresh(shape).state_dict().keys()

    def test_a_step_changes_the_last_stage_and_what_moves_of_the_batch_norms(self, shape: Shape, weights: str) -> None:
        encoder = copy.deepcopy(started(shape, weights)).train()
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        optimizer = torch.optim.Adam(encoder.parameters(), lr=0.1, weight_decay=0.1)
        encoder(torch.randn(4, *shape)).square().mean().backward()
        optimizer.step()
        changed = {key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])}
        below = {key for key in changed if not key.startswith(LAST[shape])}
        assert {name for name, _ in encoder.named_parameters()} <= changed
        moved = {key for key in before if "running_mean" in key and not key.startswith(LAST[shape])}
        if weights == RELEASED and shape != AUDIO:
            assert moved <= below
            assert all(re.search("running_|num_batches", key) for key in below)
        else:
            assert not below

    def test_the_published_state_is_taken_over(self, shape: Shape, weights: str) -> None:
        encoder, state = started(shape, weights), STATES[shape]()
        prefix = "encoder.network." if shape == AUDIO else "encoder."
        for key, value in encoder.state_dict().items():
            own = key.removeprefix(prefix)
            source = state[f"audnet.{own}" if shape == AUDIO else published_name(own)]
            drawn = shape == AUDIO and weights == RELEASED and own.startswith("layer4.")
            assert torch.equal(value.float(), source.float()) != drawn, key


def test_as_released_the_last_audio_stage_starts_as_without_weights() -> None:
    torch.manual_seed(3)
    drawn = SlowFast(AUDIO).state_dict()
    torch.manual_seed(3)
    encoder = SlowFast(AUDIO)
    encoder.start(RELEASED, vggsound())
    last = {key: value for key, value in encoder.state_dict().items() if ".layer4." in key}
    assert last
    assert all(torch.equal(value, drawn[key]) for key, value in last.items())


def test_loaded_weights_alone_freeze_nothing() -> None:
    encoder = copy.deepcopy(fresh(AUDIO))
    encoder.load(vggsound())
    assert len(list(encoder.parameters())) == len(list(fresh(AUDIO).parameters()))
