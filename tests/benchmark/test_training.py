"""The loop: what it computes, what a seed fixes, and that an interrupted run loses nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.joint import Joint
from benchmark import training
from benchmark.conformance_task import Widths, check_parts, check_protocol, check_task
from benchmark.conformance_trial import Trial
from benchmark.context import Context, Forward, begin, learning_rate
from benchmark.data import Batch
from benchmark.errors import CellError
from benchmark.evaluation import evaluate, evaluate_finally
from benchmark.method import Method, Passes
from benchmark.model import MultimodalModel, same_parameters
from benchmark.protocol import Optimizer, Protocol, Schedule
from benchmark.registry import METHODS
from benchmark.scores import select_epoch
from benchmark.training import Fit, fit, initialised
from benchmark.version import RESULT_SCHEMA

TASK = check_task(2, Widths.UNEQUAL)
PARTS = check_parts(2)


def protocol(**changes: Any) -> Protocol:
    return Protocol(**{"epochs": 4, "batch_size": 12, "optimizer": Optimizer(lr=0.05), **changes})


def joint() -> Joint:
    return Joint(Joint.Options(), TASK)


def bare_loop(epochs: int, clip_norm: float | None = None) -> dict[str, Tensor]:
    """Joint training as anybody would write it, with our initialisation and batch order."""
    from benchmark import seeding

    method = joint()
    model = initialised(method, 0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for epoch in range(epochs):
        for batch in PARTS["train"].batches(12, order=seeding.generator(0, "order", "", epoch, 0)):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model.classify(model.encode(batch.inputs)), batch.labels)
            loss.backward()
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
    return model.state_dict()


def equal(run: Fit, state: dict[str, Tensor]) -> bool:
    own = run.model.state_dict()
    return all(torch.equal(value, own[name]) for name, value in state.items())


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_joint_training_is_the_bare_loop_bit_for_bit(clip_norm: float | None) -> None:
    assert equal(fit(joint(), PARTS, protocol(clip_norm=clip_norm), 0), bare_loop(4, clip_norm))


def test_every_epoch_records_validation_test_and_diagnostics() -> None:
    run = fit(joint(), PARTS, protocol(), 0)
    assert [record["epoch"] for record in run.epochs] == [0, 1, 2, 3]
    for record in run.epochs:
        for part in ("val", "test"):
            assert set(record[part]) == {"accuracy", "macro_f1", "loss", "unimodal", "missing"}
            assert set(record[part]["unimodal"]) == set(record[part]["missing"]) == {"m0", "m1"}
        assert -1 <= record["balance_factor"] <= 1
        assert record["plane"][-1][0] == 1.0
    assert run.steps == 4 * 4
    assert run.epochs[-1]["loss"] < run.epochs[0]["loss"]


class NoisyJoint(Joint):
    """Joint training that spends random numbers in a hook."""

    def start_epoch(self, ctx: Context) -> None:
        torch.randn(10, generator=ctx.generator)


def test_a_random_draw_in_a_method_moves_neither_initialisation_nor_order() -> None:
    plain = fit(joint(), PARTS, protocol(), 0)
    noisy = fit(NoisyJoint(Joint.Options(), TASK), PARTS, protocol(), 0)
    assert equal(noisy, plain.model.state_dict())


def test_seeds_differ_and_leave_the_callers_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fit(joint(), PARTS, protocol(), 0)
    assert torch.rand(1) == expected
    assert not equal(fit(joint(), PARTS, protocol(), 1), first.model.state_dict())


class KilledError(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_killed_in_any_epoch_resumes_to_the_same_bits(tmp_path: Path, stop: int, optimizer: str) -> None:
    recipe = protocol(optimizer=Optimizer(name=optimizer, lr=0.01), schedule=Schedule(name="cosine"))
    whole = fit(joint(), PARTS, recipe, 0)

    def kill(record: dict[str, Any]) -> None:
        if record["epoch"] == stop:
            raise KilledError

    with pytest.raises(KilledError):
        fit(joint(), PARTS, recipe, 0, checkpoint=tmp_path / "c.ckpt", checkpoint_seconds=0, on_epoch=kill)
    seen: list[int] = []
    resumed = fit(
        joint(), PARTS, recipe, 0, checkpoint=tmp_path / "c.ckpt", on_epoch=lambda record: seen.append(record["epoch"])
    )
    assert seen == list(range(stop, 4))
    assert resumed.epochs == whole.epochs
    assert resumed.final == whole.final
    assert (resumed.passes, resumed.steps) == (whole.passes, whole.steps)
    assert equal(resumed, whole.model.state_dict())


class Exploding(Joint):
    """A loss that becomes infinite in the second epoch."""

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        losses = super().losses(forward, batch, ctx)
        return {"fused": losses["fused"] * (float("inf") if ctx.epoch == 1 else 1.0)}


def test_a_non_finite_loss_ends_the_cell_with_one_sentence() -> None:
    with pytest.raises(
        CellError, match=r"loss became (inf|nan) in epoch 2 of 4 \(learning rate 0\.05\)\. Lower the learning"
    ):
        fit(Exploding(Joint.Options(), TASK), PARTS, protocol(), 0)


def test_schedules() -> None:
    cosine, step = Schedule(name="cosine"), Schedule(name="step", every=2, gamma=0.5)
    assert [learning_rate(1.0, cosine, e, 4) for e in range(4)] == pytest.approx(
        [1.0, 0.853553, 0.5, 0.146447], abs=1e-6
    )
    assert [learning_rate(1.0, step, e, 4) for e in range(4)] == [1.0, 1.0, 0.5, 0.5]
    assert learning_rate(1.0, Schedule(), 3, 4) == 1.0


class Doubled(Method):
    """Doubles every feature gradient: with plain SGD the encoders move twice as far, the head does not."""

    info = Joint.info

    def modulate_features(
        self, gradients: dict[str, Tensor], forward: Forward, batch: Batch, ctx: Context
    ) -> dict[str, Tensor]:
        return {name: 2 * gradient for name, gradient in gradients.items()}


def test_modulated_features_reach_the_encoders_and_leave_the_head() -> None:
    recipe = protocol(epochs=1, batch_size=64, optimizer=Optimizer(lr=0.01, momentum=0, weight_decay=0))
    start = initialised(joint(), 0).state_dict()
    plain = fit(joint(), PARTS, recipe, 0).model.state_dict()
    doubled = fit(Doubled(Method.Options(), TASK), PARTS, recipe, 0).model.state_dict()
    name = "encoders.m0.project.weight"
    torch.testing.assert_close(doubled[name] - start[name], 2 * (plain[name] - start[name]), rtol=1e-3, atol=1e-7)
    assert torch.equal(doubled["head.weight"], plain["head.weight"])


def test_bfloat16_trains_with_float32_gradients_at_the_features() -> None:
    seen: set[torch.dtype] = set()

    class Watching(Joint):
        def modulate_features(
            self, gradients: dict[str, Tensor], forward: Forward, batch: Batch, ctx: Context
        ) -> dict[str, Tensor]:
            seen.update(gradient.dtype for gradient in gradients.values())
            return gradients

    run = fit(Watching(Joint.Options(), TASK), PARTS, protocol(precision="bf16-mixed"), 0)
    assert seen == {torch.float32}
    assert run.epochs[-1]["loss"] < run.epochs[0]["loss"]


class OneEncoder(Joint):
    """Trains the first encoder and the head; the second encoder stays as it is."""

    def parameters(self, model: MultimodalModel) -> dict[str, nn.Parameter]:
        return {name: value for name, value in model.named_parameters() if not name.startswith("encoders.m1.")}


def test_an_encoder_that_is_not_trained_stays_untouched() -> None:
    start = initialised(joint(), 0).state_dict()
    trained = fit(OneEncoder(Joint.Options(), TASK), PARTS, protocol(), 0).model.state_dict()
    name = "project.weight"
    assert torch.equal(trained[f"encoders.m1.{name}"], start[f"encoders.m1.{name}"])
    assert not torch.equal(trained[f"encoders.m0.{name}"], start[f"encoders.m0.{name}"])


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zeroed_block(content: bytes) -> bytes:
    """A block of the weights that never reached the disk."""
    place = content.index(b"/data/0") + 128
    return content[:place] + bytes(64) + content[place + 64 :]


def zeroed_end(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


@pytest.mark.parametrize("damage", [halved, zeroed_block, zeroed_end, lambda _: b"", lambda _: b"garbage"])
def test_a_damaged_checkpoint_is_dropped_and_the_run_starts_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    file = tmp_path / "c.ckpt"
    fit(joint(), PARTS, protocol(), 0, checkpoint=file, checkpoint_seconds=0)
    file.write_bytes(damage(file.read_bytes()))
    run = fit(joint(), PARTS, protocol(), 0, checkpoint=file)
    assert run.epochs == fit(joint(), PARTS, protocol(), 0).epochs
    assert not file.exists()


class Dropped(Joint):
    """Drops features at random, from the stream of random layers."""

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        features = {name: functional.dropout(value, 0.5) for name, value in forward.features.items()}
        return {"fused": functional.cross_entropy(forward.model.classify(features), batch.labels)}


def test_random_layers_follow_the_seed_and_not_the_process() -> None:
    torch.manual_seed(1)
    first = fit(Dropped(Joint.Options(), TASK), PARTS, protocol(), 0)
    torch.manual_seed(2)
    assert equal(fit(Dropped(Joint.Options(), TASK), PARTS, protocol(), 0), first.model.state_dict())


def test_a_part_of_a_forward_pass_reaches_the_same_features() -> None:
    network = initialised(joint(), 0)
    batch = next(PARTS["train"].batches(6))
    ctx: Context = begin(joint(), network, protocol(), 0, PARTS["train"], PARTS["val"])
    forward = ctx.forward(batch)
    alone = forward.only("m0")
    torch.testing.assert_close(alone.logits, network.classify({"m0": forward.features["m0"]}))
    gradients = ctx.feature_gradients(forward, alone.logits.sum())
    assert gradients["m0"].abs().sum() > 0
    assert gradients["m1"].abs().sum() == 0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_training_aside_has_the_learning_rates_of_the_epochs_it_is_told(schedule: str) -> None:
    method, recipe = joint(), protocol(schedule=Schedule(name=schedule, every=3))
    ctx: Context = begin(method, initialised(method, 0), recipe, 0, PARTS["train"], PARTS["val"])
    ctx.enter(method, 1)
    rates: list[float] = []
    model, few = initialised(method, 1), torch.arange(20)
    parameters = dict(model.named_parameters())
    ctx.train_aside(model, parameters, "a", lambda _, side: rates.append(side.lr), epochs=(2, 2.5, 3), indices=few)
    assert rates[::2] == rates[1::2] == [learning_rate(0.05, recipe.schedule, epoch, 4) for epoch in (2, 2.5, 3)]
    assert ctx.lr == learning_rate(0.05, recipe.schedule, 1, 4)


def test_training_aside_leaves_the_run_and_the_process_s_random_state_as_they_were() -> None:
    method = joint()
    ctx: Context = begin(method, initialised(method, 0), protocol(), 0, PARTS["train"], PARTS["val"])
    state, own = torch.get_rng_state(), ctx.generator.get_state()

    def step(batch: Batch, side: Context) -> None:
        forward = side.forward(batch)
        dropped = {name: functional.dropout(value, 0.5) for name, value in forward.features.items()}
        side.descend(forward, functional.cross_entropy(side.model.classify(dropped), batch.labels))

    trained = []
    for _ in range(2):
        model = initialised(method, 1)
        ctx.train_aside(model, dict(model.named_parameters()), "aside", step, epochs=range(2))
        assert torch.equal(torch.get_rng_state(), state)
        trained.append(model)
        torch.rand(1)
        state = torch.get_rng_state()
    assert same_parameters(*trained)
    assert not same_parameters(trained[0], initialised(method, 1))
    assert same_parameters(ctx.model, initialised(method, 0))
    assert torch.equal(ctx.generator.get_state(), own)
    assert (ctx.steps, ctx.lr) == (0, 0.05)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_records_the_accuracy_without_each_modality(name: str) -> None:
    method = Trial(METHODS.load(name), {}).build()
    model = initialised(method, 0)
    metrics = evaluate(method, model, check_parts(2)["test"], 8)
    assert metrics["missing"].keys() == {"m0", "m1"}


def selected_early(name: str) -> tuple[Fit, Mapping[str, Any]]:
    """A run whose best validation epoch is not the last one, and that epoch's record."""
    for seed in range(5):
        method = Trial(METHODS.load(name), {}).build()
        run = fit(method, check_parts(2), check_protocol(), seed)
        selected = select_epoch(run.epochs, "best_val")
        if selected is not run.epochs[-1]:
            return run, selected
    raise AssertionError(f"{name}: the last epoch is the best one under every seed.")


@pytest.mark.parametrize("name", METHODS.names())
def test_the_final_evaluation_is_of_the_selected_epoch_and_of_the_last(name: str) -> None:
    run, selected = selected_early(name)
    assert run.final["best_val"]["accuracy"] == selected["test"]["accuracy"]
    assert run.final["last"]["accuracy"] == run.epochs[-1]["test"]["accuracy"]


def test_the_final_evaluation_has_reliability_and_every_corruption_of_every_modality() -> None:
    run, _ = selected_early("joint")
    assert run.final.keys() == {"best_val", "last"}
    for found in run.final.values():
        assert found.keys() == {"accuracy", "ece", "auroc", "aurc", "fpr95", "corrupted"}
        assert found["corrupted"].keys() == {"m0", "m1"}
        for corruptions in found["corrupted"].values():
            assert {name: len(severities) for name, severities in corruptions.items()} == {
                "noise": 3,
                "blur": 3,
                "dropout": 3,
            }
    assert run.final["best_val"] != run.final["last"]


def test_the_last_epoch_is_evaluated_once_where_it_is_the_selected_one() -> None:
    run = fit(joint(), PARTS, protocol(epochs=1), 0)
    assert run.final["best_val"] is run.final["last"]


def test_the_final_evaluation_is_neither_counted_nor_timed_as_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*arguments: Any) -> dict[str, Any]:
        time.sleep(1.0)
        return evaluate_finally(*arguments)

    monkeypatch.setattr(training, "evaluate_finally", slowly)
    run = fit(joint(), PARTS, protocol(epochs=1), 0)
    assert run.passes == Passes(1.0, 1.0)
    assert run.seconds > 1.0 > run.training_seconds


def test_a_checkpoint_of_another_version_is_dropped_and_the_run_starts_anew(tmp_path: Path) -> None:
    file = tmp_path / "c.ckpt"
    torch.save({"schema": RESULT_SCHEMA - 1, "epochs": []}, file)
    run = fit(joint(), PARTS, protocol(), 0, checkpoint=file)
    assert run.epochs == fit(joint(), PARTS, protocol(), 0).epochs
    assert not file.exists()


def test_a_note_is_the_mean_of_its_finite_values_and_a_name_without_any_is_left_out() -> None:
    class Noting(Joint):
        def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
            ctx.note("ratio", torch.tensor(float("inf") if ctx.steps % 2 else 3.0))
            ctx.note("nothing", float("nan"))
            return super().losses(forward, batch, ctx)

    found = fit(Noting(Noting.Options(), TASK), PARTS, protocol(epochs=1), 0)
    assert found.epochs[0]["notes"] == {"ratio": 3.0}
