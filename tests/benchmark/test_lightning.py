"""The same methods inside a `pytorch_lightning.Trainer`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from benchmark.conformance_task import SOURCES, Tiny, Widths, check_parts, check_protocol, check_task
from benchmark.errors import UsageError
from benchmark.lightning import BalancedModule
from benchmark.registry import METHODS
from benchmark.training import Fit, cpu_or_cuda, fit

PARTS = check_parts(2)
with torch.random.fork_rng():
    torch.manual_seed(3)
    ENCODERS = {name: Tiny(8) for name in PARTS["train"].shapes}
# Our loop starts from the very encoders that the Trainer's user brings.
TASK = replace(check_task(2, Widths.EQUAL), backbone=lambda name, _shape: copy.deepcopy(ENCODERS[name]))


def trainer(folder: Path, **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_epochs": check_protocol().epochs,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return Trainer(**{**settings, **arguments})


def options(name: str) -> dict[str, Any]:
    return METHODS.load(name).sample_options(TASK)


def ours(name: str) -> Fit:
    method = METHODS.load(name)
    task = replace(TASK, domains=domains(name))
    return fit(method(method.Options(**options(name)), task), PARTS, check_protocol(), 0)


def domains(name: str) -> tuple[str, ...]:
    return SOURCES[: METHODS.load(name).info.min_domains]


def module(name: str, **data: Any) -> BalancedModule:
    given = {"options": options(name), "domains": domains(name), **data}
    return BalancedModule(name, ENCODERS, TASK.classes, check_protocol(), **given)


def loader() -> DataLoader[Any]:
    part = PARTS["train"]

    def collate(samples: list[tuple[torch.Tensor, ...]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        first, second, labels = (torch.stack(column) for column in zip(*samples, strict=True))
        return {"m0": first, "m1": second}, labels

    rows = TensorDataset(part.inputs["m0"], part.inputs["m1"], part.labels)
    return DataLoader(rows, batch_size=12, shuffle=True, collate_fn=collate)


@pytest.mark.parametrize("name", METHODS.names())
def test_the_trainer_gives_the_weights_of_our_loop(name: str, tmp_path: Path) -> None:
    trained = module(name, train=PARTS["train"], val=PARTS["val"])
    trainer(tmp_path).fit(trained)
    expected = ours(name).model.state_dict()
    for key, value in trained.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0, msg=key)


class Spy(Callback):
    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.steps = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.steps = trainer.global_step


def test_the_trainer_sees_metrics_and_steps(tmp_path: Path) -> None:
    spy = Spy()
    trainer(tmp_path, callbacks=[spy]).fit(module("joint", train=PARTS["train"], val=PARTS["val"]))
    run = ours("joint")
    assert spy.steps == run.steps
    assert [m["val_accuracy"] for m in spy.metrics] == pytest.approx([e["val"]["accuracy"] for e in run.epochs])
    assert [m["train_loss"] for m in spy.metrics] == pytest.approx([e["loss"] for e in run.epochs])
    assert [m["balance_factor"] for m in spy.metrics] == pytest.approx([e["balance_factor"] for e in run.epochs])


# Resuming writes where the first run wrote.
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("name", ["rgm", "reconboost", "cmrf"])
def test_a_trainer_checkpoint_resumes_to_the_same_weights(name: str, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 5:
                raise KeyboardInterrupt

    data = {"train": PARTS["train"], "val": PARTS["val"]}

    def saving() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=1)

    with pytest.raises((SystemExit, KeyboardInterrupt)):
        trainer(tmp_path, callbacks=[saving(), Stop()], enable_checkpointing=True).fit(module(name, **data))
    resumed = module(name, **data)
    again = trainer(tmp_path, callbacks=[saving()], enable_checkpointing=True)
    again.fit(resumed, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    expected = ours(name).model.state_dict()
    assert [key for key, value in resumed.model.state_dict().items() if not torch.equal(value, expected[key])] == []


def test_your_own_loader_will_do_for_methods_that_need_only_the_batch(tmp_path: Path) -> None:
    part = PARTS["train"]
    trained = module("rgm")
    before = copy.deepcopy(trained.model.state_dict())
    trainer(tmp_path).fit(trained, loader())
    assert not torch.equal(trained.model.state_dict()["head.weight"], before["head.weight"])
    assert trained({"m0": part.inputs["m0"], "m1": part.inputs["m1"]}).shape == (len(part), TASK.classes)


def test_a_method_that_reads_the_data_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"reads the training data\. Pass it to the module as a Part"):
        trainer(tmp_path).fit(module("diagnosing_relearning"), loader())


def test_epochs_of_trainer_and_protocol_must_agree(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="The Trainer runs 3 epochs, the protocol 9"):
        trainer(tmp_path, max_epochs=3).fit(module("joint", train=PARTS["train"]))


def test_an_encoder_without_width_is_refused() -> None:
    with pytest.raises(UsageError, match="Encoder 'm0' has no `width`"):
        BalancedModule("joint", {"m0": torch.nn.Linear(1, 1)}, 3, check_protocol())


def test_precision_of_trainer_and_protocol_must_agree(tmp_path: Path) -> None:
    protocol = check_protocol().model_copy(update={"precision": "bf16-mixed"})
    with pytest.raises(UsageError, match="The Trainer computes in 32-true, the protocol in bf16-mixed"):
        trainer(tmp_path).fit(BalancedModule("joint", ENCODERS, TASK.classes, protocol, train=PARTS["train"]))


class Dropping(Tiny):
    """An encoder with a random layer."""

    def pool(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(super().pool(hidden), 0.3, self.training)


def test_random_layers_draw_what_they_draw_in_our_loop(tmp_path: Path) -> None:
    encoders = {name: Dropping(8) for name in TASK.modalities}
    trained = BalancedModule("joint", encoders, TASK.classes, check_protocol(), train=PARTS["train"])
    trainer(tmp_path).fit(trained)
    method = METHODS.load("joint")
    task = replace(TASK, backbone=lambda name, _shape: copy.deepcopy(encoders[name]))
    expected = fit(method(method.Options(), task), PARTS, check_protocol(), 0).model.state_dict()
    assert [key for key, value in trained.model.state_dict().items() if not torch.equal(value, expected[key])] == []


def test_a_cell_in_an_allocation_of_several_slurm_tasks_trains_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NAME", "grid")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert cpu_or_cuda("32-true").world_size == 1
