"""Published weights: pinned, verified, fitted to an encoder's channels, refused with the reason."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18, vit_b_16

from benchmark.backbones import Backbone
from benchmark.backbones.resnet import ResNet18
from benchmark.backbones.vit import ViT, ViTTiny
from benchmark.backbones.weights import for_channels, pretrained
from benchmark.cli import main
from benchmark.dataset import Checksum, Source
from benchmark.errors import DataError, UsageError
from benchmark.registry import BACKBONES

State = dict[str, Tensor]

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(1)
    network: nn.Module = resnet18(weights=None)
    network.train()(torch.randn(8, 3, 32, 32))  # statistics of batch norms that differ from their start
    return network.eval()


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(1)
    network: nn.Module = vit_b_16(weights=None)
    return network.eval()


class TestPins:
    @pytest.mark.parametrize("name", BACKBONES.names())
    def test_a_published_file_is_named_after_its_pinned_hash(self, name: str) -> None:
        for source in {source for sources in BACKBONES.load(name).weights.values() for source in sources}:
            assert source.checksum is not None
            assert len(source.checksum.sha256) == (64 if "pytorch.org" in source.urls[0] else 8 * ("-" in source.file))
            assert Path(source.file).stem.rpartition("-")[2].startswith(source.checksum.sha256[:8])
            assert [url.rpartition("/")[2] for url in source.urls] == [source.file]

    def test_every_backbone_states_its_weights_and_the_small_ones_have_none(self) -> None:
        names = {name: list(BACKBONES.load(name).weights) for name in BACKBONES.names()}
        assert names["resnet18"] == names["vit"] == ["imagenet"]
        assert names["small"] == names["vittiny"] == []
        assert names["slowfast"] == names["slowfastr50"] == ["kinetics400_vggsound", "kinetics400_vggsound_released"]


class TestParity:
    def test_a_loaded_resnet18_has_torchvisions_features(self, resnet: nn.Module) -> None:
        state, encoder = resnet.state_dict(), ResNet18((3, 40, 33)).eval()
        assert len(state) == 122
        encoder.load(state)
        inputs, pooled = torch.randn(2, 3, 40, 33), []
        handle = resnet.get_submodule("avgpool").register_forward_hook(lambda *call: pooled.append(call[-1]))
        with torch.no_grad():
            resnet(inputs)
            handle.remove()
            assert torch.equal(encoder(inputs), pooled[0].flatten(1))

    @pytest.mark.parametrize("old_names", [False, True])
    def test_a_loaded_vit_has_torchvisions_class_token(self, vit: nn.Module, old_names: bool) -> None:
        state, encoder = vit.state_dict(), ViT((3, 224, 224)).eval()
        assert len(state) == 152
        if old_names:
            numbers = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
            for new, old in numbers.items():
                state = {key.replace(new, old): value for key, value in state.items()}
        encoder.load(state)
        inputs, tokens = torch.randn(1, 3, 224, 224), []
        handle = vit.get_submodule("encoder").register_forward_hook(lambda *call: tokens.append(call[-1][:, 0]))
        with torch.no_grad():
            vit(inputs)
            handle.remove()
            assert torch.equal(encoder(inputs), tokens[0])


class TestChannels:
    KERNEL = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    def test_rgb_is_taken_as_it_is(self) -> None:
        assert torch.equal(for_channels(self.KERNEL, 3), self.KERNEL)

    def test_one_channel_gets_the_sum_over_rgb(self) -> None:
        assert torch.equal(for_channels(self.KERNEL, 1), self.KERNEL.sum(1, keepdim=True))

    @pytest.mark.parametrize("channels", [1, 2, 20])
    def test_equal_channels_are_answered_as_grey_rgb(self, channels: int) -> None:
        grey = torch.randn(2, 1, 6, 6)
        found = functional.conv2d(grey.expand(-1, channels, -1, -1), for_channels(self.KERNEL, channels))
        torch.testing.assert_close(found, functional.conv2d(grey.expand(-1, 3, -1, -1), self.KERNEL))

    @pytest.mark.parametrize("channels", [1, 2, 3, 20])
    def test_only_the_first_filters_of_resnet18_depend_on_the_channels(self, resnet: nn.Module, channels: int) -> None:
        state, encoder = resnet.state_dict(), ResNet18((channels, 32, 32))
        encoder.load(state)
        for key, value in encoder.network.state_dict().items():
            assert torch.equal(value, for_channels(state[key], channels) if key == "conv1.weight" else state[key])

    def test_the_patch_embedding_of_a_transformer_is_fitted_too(self, vit: nn.Module) -> None:
        state, encoder = vit.state_dict(), ViT((2, 8, 8))
        encoder.load(state)
        expected = for_channels(state["conv_proj.weight"], 2)
        assert torch.equal(encoder.state_dict()["network.conv_proj.weight"], expected)

    def test_loaded_parameters_stay_trainable(self, resnet: nn.Module) -> None:
        encoder = ResNet18((1, 32, 32))
        encoder.load(dict(resnet.named_parameters()) | dict(resnet.named_buffers()))
        assert all(parameter.requires_grad and parameter.is_leaf for parameter in encoder.parameters())


class TestRefusals:
    def refusal(self, state: State, encoder: Backbone) -> str:
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        with pytest.raises(DataError) as caught:
            encoder.load(state)
        assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
        return str(caught.value)

    def test_a_prefix_is_named(self, resnet: nn.Module) -> None:
        state = {f"module.{key}": value for key, value in resnet.state_dict().items()}
        assert self.refusal(state, ResNet18((3, 8, 8))) == (
            "These weights do not fit backbone 'resnet18' (missing: conv1.weight, bn1.weight, bn1.bias, 117 more; "
            "unexpected: module.conv1.weight, module.bn1.weight, module.bn1.bias, 119 more). "
            "Use the published file as it is."
        )

    def test_a_missing_entry_is_named(self, resnet: nn.Module) -> None:
        state = resnet.state_dict()
        del state["layer3.0.conv2.weight"]
        assert "(missing: layer3.0.conv2.weight)" in self.refusal(state, ResNet18((3, 8, 8)))

    @pytest.mark.parametrize("shape", [(64, 4, 7, 7), (64, 3, 3, 3), (64,)])
    def test_another_shape_is_named(self, resnet: nn.Module, shape: tuple[int, ...]) -> None:
        state = resnet.state_dict() | {"conv1.weight": torch.zeros(shape)}
        refusal = self.refusal(state, ResNet18((3, 8, 8)))
        assert f"(of another shape: conv1.weight {shape} instead of (64, 3, 7, 7))" in refusal

    def test_the_weights_of_a_larger_transformer_do_not_fit(self, vit: nn.Module) -> None:
        refusal = self.refusal(vit.state_dict(), ViTTiny((3, 8, 8)))
        assert refusal.startswith("These weights do not fit backbone 'vittiny' (unexpected: encoder.layers.encoder_lay")

    def test_the_classifier_may_be_missing(self, resnet: nn.Module) -> None:
        state = {key: value for key, value in resnet.state_dict().items() if not key.startswith("fc.")}
        ResNet18((3, 8, 8)).load(state)


def publish(monkeypatch: pytest.MonkeyPatch, file: Path, content: Any) -> None:
    """Save `content` as `file` and pin it as what resnet18 calls `toy`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
    data = file.read_bytes()
    source = Source(
        file=file.name,
        urls=("http://127.0.0.1:1/toy.pth",),
        checksum=Checksum(hashlib.sha256(data).hexdigest(), len(data)),
    )
    monkeypatch.setattr(ResNet18, "weights", {"toy": (source,)})


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    return tmp_path / "weights" / "resnet18" / "toy.pth"


class TestFiles:
    STATE: ClassVar[State] = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}

    def test_a_verified_file_is_read_as_published(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(monkeypatch, toy, self.STATE)
        found = pretrained("resnet18", "toy", SHAPE)
        assert found.keys() == self.STATE.keys()
        assert all(torch.equal(value, self.STATE[key]) for key, value in found.items())

    def test_a_missing_file_says_what_to_run(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(monkeypatch, toy, self.STATE)
        toy.unlink()
        with pytest.raises(DataError, match=r"^resnet18: toy.pth: .*missing.* Run `equipoise fetch resnet18`\.$"):
            pretrained("resnet18", "toy", SHAPE)

    def test_a_truncated_file_is_refused(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(monkeypatch, toy, self.STATE)
        size = toy.stat().st_size
        toy.write_bytes(toy.read_bytes()[:-1])
        with pytest.raises(DataError, match=f"{size - 1} bytes instead of {size}.*equipoise fetch resnet18"):
            pretrained("resnet18", "toy", SHAPE)

    def test_other_bytes_are_never_read(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(monkeypatch, toy, self.STATE)
        content = bytearray(toy.read_bytes())
        content[len(content) // 2] ^= 1
        toy.write_bytes(content)
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read before it was verified"))
        with pytest.raises(DataError, match=r"sha256 .* instead of .*equipoise fetch resnet18"):
            pretrained("resnet18", "toy", SHAPE)

    def test_a_state_is_found_among_other_plain_data(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        beside = {"epoch": 3, "meta": {"config": "x"}, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
        publish(monkeypatch, toy, {**beside, "state_dict": self.STATE})
        assert pretrained("resnet18", "toy", SHAPE).keys() == self.STATE.keys()

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ({"state_dict": STATE, "path": Path("x")}, "no states"),
            ({"state_dict": STATE, "ema": STATE}, "2 states"),
            ([torch.zeros(1)], "no states"),
            ({}, "no states"),
        ],
    )
    def test_a_file_without_one_state_or_with_objects_is_refused(
        self, toy: Path, monkeypatch: pytest.MonkeyPatch, content: Any, found: str
    ) -> None:
        publish(monkeypatch, toy, content)
        with pytest.raises(
            DataError, match=rf"resnet18: toy\.pth holds {found} instead of one, or more than plain data"
        ):
            pretrained("resnet18", "toy", SHAPE)

    def test_unknown_weights_are_answered_with_the_known_ones(self) -> None:
        with pytest.raises(UsageError, match=r"'resnet18' 'imagnet'\. Did you mean 'imagenet'\? Known: imagenet\."):
            pretrained("resnet18", "imagnet", SHAPE)
        with pytest.raises(UsageError, match=r"Unknown weights of backbone 'small' 'imagenet'\. Known: none\."):
            pretrained("small", "imagenet", SHAPE)


class TestFetch:
    def test_the_weights_of_a_backbone_come_from_a_mirror_and_are_then_read(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        publish(monkeypatch, tmp_path / "mirror" / "resnet18" / "toy.pth", TestFiles.STATE)
        monkeypatch.setenv("EQUIPOISE_MIRROR", str(tmp_path / "mirror"))
        assert main(["fetch", "resnet18"]) == 0
        assert capsys.readouterr().out == "toy.pth: 1 expected, 1 found, 0 broken\n"
        assert toy.is_file()
        assert pretrained("resnet18", "toy", SHAPE).keys() == TestFiles.STATE.keys()

    def test_a_broken_file_is_replaced(self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(monkeypatch, tmp_path / "mirror" / "resnet18" / "toy.pth", TestFiles.STATE)
        monkeypatch.setenv("EQUIPOISE_MIRROR", str(tmp_path / "mirror"))
        toy.parent.mkdir(parents=True)
        toy.write_bytes(b"half")
        assert main(["fetch", "resnet18"]) == 0
        pretrained("resnet18", "toy", SHAPE)

    @pytest.mark.usefixtures("toy")
    def test_a_backbone_without_weights_needs_no_download(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["fetch", "small"]) == 0
        assert capsys.readouterr().out == "small needs no download.\n"

    @pytest.mark.usefixtures("toy")
    def test_an_unknown_name_is_answered_with_datasets_and_backbones(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["fetch", "resnet81"]) == 2
        answer = capsys.readouterr().err
        assert "Unknown dataset or backbone 'resnet81'. Did you mean 'resnet18'?" in answer
        assert "digits" in answer
        assert "vittiny" in answer

    @pytest.mark.usefixtures("toy")
    def test_a_dataset_goes_before_a_backbone_of_its_name(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(BACKBONES, "names", lambda: ["digits"])
        assert main(["fetch", "digits"]) == 0
        assert capsys.readouterr().out == "digits needs no download.\n"
