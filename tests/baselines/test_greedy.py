"""Greedy: the worked numbers, the schedule, the gates, and a model whose encoders advance in lockstep."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from baselines.greedy import Gate, GatedModel, Greedy, Schedule, gate_widths, leaning, learning_speed, speed_ratios
from benchmark.backbones.resnet import ResNet18
from benchmark.backbones.small import Small
from benchmark.context import Context, Run
from benchmark.data import Part
from benchmark.evaluation import evaluate
from benchmark.method import Method, MethodOptions, Passes, Plan, unimodal_losses
from benchmark.model import MultimodalModel, parameter_group, same_parameters
from benchmark.protocol import Optimizer, Protocol
from benchmark.task import Task
from benchmark.training import fit, initialised

EPOCHS, BATCH, TRAIN, CLASSES = 4, 8, 48, 3
SHAPES: dict[str, tuple[int, ...]] = {"a": (1, 4, 4), "v": (2, 3, 5), "t": (1, 4, 4)}
LARGE = (1, 20, 20)
"""A sample shape for which Small has a third stage."""
PROTOCOL = Protocol(epochs=EPOCHS, batch_size=BATCH, optimizer=Optimizer(lr=0.05))


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def part(size: int, seed: int) -> Part:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % CLASSES
    inputs = {m: torch.randn(size, *shape, generator=generator) for m, shape in SHAPES.items()}
    inputs["a"][:, 0, 0, :CLASSES] += 3 * torch.eye(CLASSES)[labels]
    return Part.from_tensors(inputs, labels)


PARTS = {"train": part(TRAIN, 0), "val": part(12, 1), "test": part(12, 2)}


def task(modalities: str = "av", **shapes: tuple[int, ...]) -> Task:
    return Task({m: shapes.get(m, SHAPES[m]) for m in modalities}, CLASSES, EPOCHS, lambda _, shape: Small(shape))


def greedy(modalities: str = "av", **options: Any) -> Greedy:
    return Greedy(Greedy.Options(**options), task(modalities))


def built(modalities: str = "av", **options: Any) -> GatedModel:
    model = initialised(greedy(modalities, **options), 0)
    assert isinstance(model, GatedModel)
    return model


def context(method: Method, epoch: int = 0) -> Context:
    model = initialised(method, 0).train()
    plan = Plan(EPOCHS, TRAIN, 12, method.task.modalities, BATCH)
    run = Run(method.task, plan, PARTS["train"], PARTS["val"], 0, PROTOCOL)
    ctx = Context(run, model, method.parameters(model))
    ctx.enter(method, epoch)
    return ctx


def gates(model: nn.Module) -> list[Gate]:
    return [module for module in model.modules() if isinstance(module, Gate)]


class TestWorkedNumbers:
    main: ClassVar = [(f64(3, 4), f64(0.3, 0.4)), (f64(1, 2, 2), f64(0.1, 0.2, 0.2))]
    squeeze = f64(2, 0), f64(0.1, 0.1)
    excite: ClassVar = [(f64(1, 1), f64(0.2, 0)), (f64(2, 1), f64(0.1, 0))]

    def speeds(self) -> tuple[Tensor, Tensor]:
        bypass = [learning_speed(*zip(self.squeeze, own, strict=True)) for own in self.excite]
        return torch.stack(bypass), torch.stack([learning_speed([w], [g]) for w, g in self.main])

    def test_learning_speeds(self) -> None:
        bypass, main = self.speeds()
        torch.testing.assert_close(bypass, f64(0.010000, 0.003333), rtol=0, atol=5e-7)
        torch.testing.assert_close(main, f64(0.01, 0.01))

    def test_ratios_name_the_first_modality(self) -> None:
        first, second = speed_ratios(*self.speeds()).tolist()
        assert first == pytest.approx(0, abs=1e-12)
        assert second == pytest.approx(-0.477121, abs=5e-7)
        assert first - second == pytest.approx(0.4771213, abs=5e-8)
        assert leaning([first, second], 0.01) == 0

    def test_parameters_without_a_gradient_count_in_neither_sum(self) -> None:
        (weight, gradient), unused = self.main[0], f64(100)
        assert learning_speed([weight, unused], [gradient, None]) == learning_speed([weight], [gradient])

    def test_a_path_that_cannot_learn_has_a_finite_ratio(self) -> None:
        assert speed_ratios(f64(0, 1, 0), f64(1, 0, 0)).tolist() == pytest.approx([-24, 24, 0])


class TestLeaning:
    @pytest.mark.parametrize(
        ("ratios", "found"),
        [([0.2, 0.1], 0), ([0.1, 0.2], 1), ([0.1, 0.1], None), ([0.1, 0.15], None), ([-3, -2, -2.5], 1)],
    )
    def test_largest_ratio_beyond_the_threshold(self, ratios: list[float], found: int | None) -> None:
        assert leaning(ratios, 0.06) == found


class TestSchedule:
    def flags(self, window: int, steps: int) -> list[int]:
        schedule, found = Schedule(), []
        for _ in range(steps):
            found.append(int(schedule.isolated is not None))
            schedule = schedule.after_step(0, window)
        return found

    def test_official_pattern_after_the_warm_up(self) -> None:
        assert self.flags(5, 14) == [0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1]

    def test_window_of_one_alternates(self) -> None:
        assert self.flags(1, 5) == [0, 1, 0, 1, 0]

    def test_target_of_a_window_stays(self) -> None:
        schedule = Schedule().after_step(1, 3)
        assert [schedule.isolated, schedule.after_step(0, 3).isolated] == [1, 1]

    def test_nothing_found_stays_regular(self) -> None:
        assert Schedule().after_step(None, 5) == Schedule()


class TestGateWidths:
    def test_resnet_has_gates_after_stages_two_to_four_of_the_official_size(self) -> None:
        widths = gate_widths(dict.fromkeys("av", ResNet18.stage_widths))
        assert [w["a"] for w in widths] == [128, 256, 512]
        sizes = [sum(p.numel() for p in Gate(w, False, False).parameters()) for w in widths]
        assert sizes == [65_920, 262_912, 1_050_112]
        assert sum(sizes) == 1_378_944

    def test_four_channels_each_have_76_parameters(self) -> None:
        assert sum(p.numel() for p in Gate({"a": 4, "v": 4}, False, False).parameters()) == 76

    def test_encoders_of_unequal_depth_meet_at_their_last_stages(self) -> None:
        assert gate_widths({"a": (8, 16, 32), "v": (4, 8, 16, 64)}) == [{"a": 16, "v": 16}, {"a": 32, "v": 64}]

    def test_an_only_stage_has_a_gate(self) -> None:
        assert gate_widths({"a": (3,), "v": (8, 16)}) == [{"a": 3, "v": 16}]

    def test_no_stage_has_none(self) -> None:
        assert gate_widths({"a": (), "v": (8, 16)}) == []


class TestGate:
    means: ClassVar = {"a": torch.rand(6, 3), "v": torch.rand(6, 4)}

    def gate(self, **readings: Any) -> Gate:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Gate({"a": 3, "v": 4}, **{"borrowed": False, "in_evaluation": False, **readings})

    def test_factors_are_those_of_the_published_module(self) -> None:
        gate = self.gate()
        joint = torch.cat([self.means["a"], self.means["v"]], dim=1)
        hidden = functional.relu(joint @ gate.squeeze.weight.T + gate.squeeze.bias)
        for m, factors in gate(self.means).items():
            layer = gate.excite.get_submodule(m)
            assert isinstance(layer, nn.Linear)
            torch.testing.assert_close(factors, torch.sigmoid(hidden @ layer.weight.T + layer.bias))

    def test_average_is_the_mean_over_all_training_passes_isolating_or_not(self) -> None:
        gate, seen = self.gate(), []
        for isolated in (None, "a", None):
            means = {m: torch.rand_like(values) for m, values in self.means.items()}
            with torch.no_grad():
                plain = copy.deepcopy(gate).eval()(means)
            seen.append(torch.cat([plain["a"], plain["v"]], dim=1).mean(0))
            gate(means, isolated)
        torch.testing.assert_close(gate.average, torch.stack(seen).mean(0))
        assert gate.passes == 3

    def test_isolated_factors_are_their_average_after_this_pass_and_constant(self) -> None:
        gate = self.gate()
        factors = gate(self.means, "v")
        assert torch.equal(factors["v"], gate.average[3:].expand(6, 4))
        assert not factors["v"].requires_grad
        assert factors["a"].requires_grad
        assert factors["a"].std(0).min() > 0

    def test_a_later_pass_leaves_isolated_factors(self) -> None:
        gate = self.gate()
        factors = gate(self.means, "v")["v"]
        before = factors.clone()
        gate({m: values + 1 for m, values in self.means.items()})
        assert torch.equal(factors, before)

    def test_borrowed_averages_are_the_first_modalitys(self) -> None:
        gate = Gate({"a": 3, "v": 3}, borrowed=True, in_evaluation=False)
        factors = gate({"a": torch.rand(6, 3), "v": torch.rand(6, 3)})
        torch.testing.assert_close(gate.average, factors["a"].detach().mean(0).repeat(2))

    @pytest.mark.parametrize("in_evaluation", [False, True])
    def test_evaluation_counts_only_where_it_should(self, in_evaluation: bool) -> None:
        gate = self.gate(in_evaluation=in_evaluation).eval()
        gate(self.means)
        assert gate.passes == int(in_evaluation)

    def test_a_missing_modality_counts_as_zeros_and_not_in_the_average(self) -> None:
        gate = self.gate()
        alone = gate({"v": self.means["v"]})
        assert gate.passes == 0
        zeros = gate({"a": torch.zeros(6, 3), "v": self.means["v"]})
        assert alone.keys() == {"v"}
        torch.testing.assert_close(alone["v"], zeros["v"])

    def test_reduced_precision_keeps_its_type_and_the_average_its_own(self) -> None:
        gate = self.gate()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            factors = gate({m: values.bfloat16() for m, values in self.means.items()}, "a")
        assert {values.dtype for values in factors.values()} == {torch.bfloat16}
        assert gate.average.dtype == torch.float32


class TestModel:
    def features(self, model: GatedModel, inputs: Mapping[str, Tensor], isolated: str | None) -> dict[str, Tensor]:
        model.isolated = isolated
        return model.encode(inputs)

    def inputs(self) -> dict[str, Tensor]:
        return {m: torch.randn(5, *SHAPES[m], requires_grad=True) for m in "av"}

    @pytest.mark.parametrize(("isolated", "reached"), [(None, {"a": "av", "v": "av"}), ("a", {"a": "a", "v": "av"})])
    def test_an_isolated_modality_hears_nothing_of_the_other(
        self, isolated: str | None, reached: dict[str, str]
    ) -> None:
        inputs = self.inputs()
        features = self.features(built().train(), inputs, isolated)
        for m, expected in reached.items():
            gradients = torch.autograd.grad(
                features[m].sum(), list(inputs.values()), retain_graph=True, allow_unused=True
            )
            assert {n for n, g in zip(inputs, gradients, strict=True) if g is not None and g.any()} == set(expected)

    def test_evaluation_isolates_none(self) -> None:
        model, inputs = built().eval(), self.inputs()
        isolated, regular = self.features(model, inputs, "a"), self.features(model, inputs, None)
        assert torch.equal(isolated["a"], regular["a"])

    def test_gates_wide_open_leave_the_encoders_alone(self) -> None:
        model, inputs = built().eval(), self.inputs()
        for gate in gates(model):
            for layer in gate.excite.values():
                assert isinstance(layer, nn.Linear)
                nn.init.constant_(layer.bias, 100.0)
        features = model.encode(inputs)
        for m in "av":
            torch.testing.assert_close(features[m], model.encoders[m](inputs[m]))

    def test_one_modality_is_encoded_as_if_the_gates_saw_zeros(self) -> None:
        model, inputs = built("avt").eval(), {m: torch.randn(5, *shape) for m, shape in SHAPES.items()}
        assert model.encode(inputs, only=["v"]).keys() == {"v"}
        assert not torch.equal(model.encode(inputs, only=["v"])["v"], model.encode(inputs)["v"])
        nn.init.zeros_(gates(model)[0].squeeze.weight)
        torch.testing.assert_close(model.encode(inputs, only=["v"])["v"], model.encode(inputs)["v"])

    def test_prediction_is_the_mean_of_the_modalities_logits(self) -> None:
        prediction = built().eval().predict(self.inputs())
        a, v = prediction.unimodal.values()
        torch.testing.assert_close(prediction.logits, (a + v) / 2)

    def test_a_deeper_encoder_runs_its_first_stages_ungated(self) -> None:
        method = Greedy(Greedy.Options(), task(v=LARGE))
        model = initialised(method, 0)
        assert [gate.widths for gate in gates(model)] == [{"a": 32, "v": 64}]
        features = model.encode({"a": torch.randn(5, *SHAPES["a"]), "v": torch.randn(5, *LARGE)})
        assert features["v"].shape == (5, 64)

    def test_all_parameters_are_on_a_path_and_gates_are_in_the_heads_group(self) -> None:
        model = built("avt")
        paths = {m: model.paths(m) for m in "avt"}
        found = {id(p) for pair in paths.values() for path in pair for p in path}
        assert found == {id(p) for p in model.parameters()}
        shared = set.intersection(*({id(p) for p in bypass} for bypass, _ in paths.values()))
        assert shared == {id(p) for gate in gates(model) for p in gate.squeeze.parameters()}
        assert {parameter_group(name) for name, _ in model.named_parameters() if "gates" in name} == {"head"}

    def test_encoders_start_as_in_joint_training(self) -> None:
        joint = initialised(Method(MethodOptions(), task()), 0)
        assert same_parameters(built().encoders, joint.encoders)


class Plain(Method):
    """Training with the same gates and losses and no schedule."""

    info = Greedy.info

    def build(self) -> MultimodalModel:
        return Greedy(Greedy.Options(), self.task).build()

    def losses(self, forward: Any, batch: Any, ctx: Context) -> dict[str, Tensor]:
        return unimodal_losses(forward, batch.labels)


class TestTraining:
    @pytest.mark.parametrize("options", [{"threshold": 1e300}, {"start": 1.0}, {"start": 1.0, "variant": "random"}])
    def test_without_isolating_it_is_plain_training_with_gates(self, options: dict[str, Any]) -> None:
        own, plain = (fit(m, PARTS, PROTOCOL, 0) for m in (greedy(**options), Plain(MethodOptions(), task())))
        assert same_parameters(own.model, plain.model)

    def test_isolating_changes_the_weights(self) -> None:
        own, plain = (fit(m, PARTS, PROTOCOL, 0) for m in (greedy(threshold=0.0), Plain(MethodOptions(), task())))
        assert not same_parameters(own.model, plain.model)

    @pytest.mark.parametrize("isolated", [None, 0])
    def test_gradients_are_those_of_the_summed_losses(self, isolated: int | None) -> None:
        method = greedy()
        method.schedule = Schedule(isolated)
        ctx = context(method)
        model, batch = copy.deepcopy(ctx.model), next(ctx.batches())
        seen: dict[str, Tensor] = {}
        ctx.step_optimizer = lambda: seen.update(  # type: ignore[method-assign]
            {name: p.grad.clone() for name, p in ctx.model.named_parameters() if p.grad is not None}
        )
        method.step(batch, ctx)
        assert isinstance(model, GatedModel)
        model.isolated = None if isolated is None else "a"
        logits = model.unimodal_logits(model.encode(batch.inputs)).values()
        torch.stack([functional.cross_entropy(values, batch.labels) for values in logits]).sum().backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert seen.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(seen[name], value)

    def test_a_run_isolates_five_steps_of_six_after_the_first_epoch(self) -> None:
        run = fit(greedy(threshold=0.0), PARTS, PROTOCOL, 0)
        shares = [sum(value for name, value in e["notes"].items() if "isolated" in name) for e in run.epochs]
        assert shares == pytest.approx([0, 5 / 6, 5 / 6, 5 / 6])

    def test_the_first_epoch_adds_up_learning_speeds_and_an_isolating_step_does_not(self) -> None:
        method = greedy(threshold=0.0, start=0.5)
        ctx = context(method)
        for batch in list(ctx.batches())[:3]:
            before = method.speeds.clone()
            method.step(batch, ctx)
            assert (method.speeds > before).all()
        assert method.schedule == Schedule()
        ctx.start(EPOCHS // 2)
        method.step(batch, ctx)
        assert method.schedule.isolated is not None
        before = method.speeds.clone()
        method.step(batch, ctx)
        assert torch.equal(method.speeds, before)

    def test_the_modality_of_the_larger_ratio_is_isolated(self) -> None:
        method = greedy(start=0.0)
        ctx = context(method)
        method.step(next(ctx.batches()), ctx)
        ratios = speed_ratios(*method.speeds.T)
        assert abs(float(ratios[0] - ratios[1])) > 0.01
        assert method.schedule.isolated == int(ratios.argmax())

    def test_a_step_isolates_and_trains_everything_but_that_modalitys_excitation(self) -> None:
        method = greedy()
        method.schedule = Schedule(1)
        ctx = context(method)
        before = {name: value.clone() for name, value in ctx.model.named_parameters()}
        method.step(next(ctx.batches()), ctx)
        still = {name for name, value in ctx.model.named_parameters() if torch.equal(value, before[name])}
        assert still == {name for name in before if "excite.v" in name}

    def test_isolated_losses_train_that_modality_alone(self) -> None:
        method = greedy(losses="isolated")
        ctx = context(method)
        forward = ctx.forward(batch := next(ctx.batches()))
        assert method.losses(forward, batch, ctx).keys() == {"unimodal a", "unimodal v"}
        assert isinstance(ctx.model, GatedModel)
        ctx.model.isolated = "v"
        assert method.losses(forward, batch, ctx).keys() == {"unimodal v"}

    def test_random_isolates_each_modality_in_a_third_of_the_steps_after_the_first_epoch(self) -> None:
        protocol = PROTOCOL.model_copy(update={"epochs": 41})
        run = fit(greedy(variant="random"), PARTS, protocol, 0)
        notes = [epoch["notes"] for epoch in run.epochs]
        assert notes[0]["isolated, a"] == notes[0]["isolated, v"] == 0
        for m in "av":
            share = sum(values[f"isolated, {m}"] for values in notes[1:]) / 40
            assert share == pytest.approx(1 / 3, abs=3 * (2 / 9 / 240) ** 0.5)

    @pytest.mark.parametrize("statistics", ["training", "all"])
    def test_evaluating_moves_the_averages_only_under_the_official_reading(self, statistics: str) -> None:
        method = greedy(statistics=statistics)
        ctx = context(method)
        method.step(next(ctx.batches()), ctx)
        before = [gate.average.clone() for gate in gates(ctx.model)]
        evaluate(method, ctx.model, PARTS["val"], BATCH)
        moved = any(not torch.equal(gate.average, old) for gate, old in zip(gates(ctx.model), before, strict=True))
        assert moved == (statistics == "all")

    def test_state_in_a_window_goes_into_a_checkpoint(self) -> None:
        method, other = greedy(threshold=0.0, start=0.0), greedy()
        ctx = context(method)
        for batch in list(ctx.batches())[:3]:
            method.step(batch, ctx)
        assert method.schedule.done == 2
        other.load_state_dict(method.state_dict())
        assert other.schedule == method.schedule
        assert torch.equal(other.speeds, method.speeds)

    def test_three_modalities_isolate_one_and_cost_no_more_passes(self) -> None:
        run = fit(greedy("avt", threshold=0.0), PARTS, PROTOCOL, 0)
        shares = [run.epochs[-1]["notes"][f"isolated, {m}"] for m in "avt"]
        assert sum(shares) == pytest.approx(5 / 6)
        assert run.passes == Passes(1.0, 1.0)


class TestRefusals:
    def test_encoders_without_stages_are_named_with_backbones_that_work(self) -> None:
        class Flat(nn.Flatten):
            width = 16

        mixed = Task(SHAPES, CLASSES, EPOCHS, lambda m, shape: Flat() if m == "v" else Small(shape))
        reason = Greedy.refuses(Greedy.Options(), mixed)
        assert reason is not None
        assert "found none for v;" in reason
        assert "resnet18 or small" in reason

    def test_borrowed_averages_need_equal_channels(self) -> None:
        options = Greedy.Options(average="first")
        reason = Greedy.refuses(options, task(v=LARGE))
        assert reason is not None
        assert "found [{'a': 32, 'v': 64}]" in reason
        assert Greedy.refuses(options, task()) is None

    def test_one_modality_has_no_other_to_lean_on(self) -> None:
        assert "at least 2 modalities" in str(Greedy.refuses(Greedy.Options(), task("a")))
