"""Reduced precision and compiled encoders: options of the protocol that change the clock, not what is learnt."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmark.backbones.small import Small
from benchmark.bench import Workload
from benchmark.compiling import compiled
from benchmark.conformance_task import SOURCES, check_parts, check_protocol
from benchmark.conformance_trial import Trial
from benchmark.method import Passes
from benchmark.protocol import Cell, Protocol
from benchmark.registry import METHODS
from benchmark.rendering import render
from benchmark.run import build_method
from benchmark.tables import build_table
from benchmark.training import Fit, fit
from tests.benchmark.test_tables import experiment, records


def cell(**protocol: object) -> Cell:
    recipe = Protocol(epochs=2).changed(protocol)
    return Cell(dataset="digits", backbone="small", fusion="concat", method="joint", protocol=recipe, seed=0)


def test_precision_and_compilation_are_part_of_a_cells_key() -> None:
    keys = {cell().key(), cell(precision="bf16-mixed").key(), cell(compile=True).key()}
    assert len(keys) == 3


def test_a_protocol_that_compiles_nothing_is_what_it_was_before_it_could() -> None:
    assert "compile" not in Protocol(epochs=1).model_dump()
    assert cell(compile=False).key() == cell().key()


@pytest.mark.parametrize(("field", "value"), [("precision", "bf16-mixed"), ("compile", True)])
def test_the_footer_names_precision_and_compilation(field: str, value: object) -> None:
    of = experiment(protocol={"epochs": 3, field: value})
    assert f"{field}={value}" in render(build_table(of, records(of)), "md")
    plain = experiment()
    assert f"{field}={value}" not in render(build_table(plain, records(plain)), "md")


def trained(name: str, precision: str) -> Fit:
    recipe = check_protocol().changed({"precision": precision})
    return fit(Trial(METHODS.load(name), {}).build(), check_parts(2), recipe, 0)


@pytest.mark.parametrize("name", ["joint", "rgm", "gmp"])
def test_bfloat16_learns_what_float32_learns(name: str) -> None:
    full, reduced = trained(name, "32-true"), trained(name, "bf16-mixed")
    assert reduced.passes == full.passes
    for exact, rounded in zip(full.epochs, reduced.epochs, strict=True):
        # Eight bits of mantissa: equal to two digits, and not to the last one.
        assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.03, abs=0.01)
        assert rounded["balance_factor"] == pytest.approx(exact["balance_factor"], abs=0.05)
    assert reduced.epochs[-1]["loss"] != full.epochs[-1]["loss"]
    one_sample = 1 / 21
    assert abs(full.epochs[-1]["val"]["accuracy"] - reduced.epochs[-1]["val"]["accuracy"]) <= one_sample + 1e-6


def test_a_cell_that_compiles_has_encoders_with_the_same_parameters() -> None:
    plain, other = build_method(cell()).build(), build_method(cell(compile=True)).build()
    assert list(other.state_dict()) == list(plain.state_dict())
    assert all(isinstance(encoder, Small) for encoder in other.encoders.values())
    assert all(type(encoder) is compiled(Small) for encoder in other.encoders.values())


needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)
WORK = Workload("small", {"upper": (1, 3, 8), "lower": (1, 5, 8)}, batch_size=16, steps=3, epochs=2, bare_limit=9.0)


def encoder(backbone: type[Small], _modality: str, shape: tuple[int, ...]) -> Small:
    return backbone(shape)


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own code, while it compiles
class TestCompiled:
    def test_a_run_learns_and_counts_the_same(self) -> None:
        for name in ("joint", "mmpareto", "gmp"):
            kind = METHODS.load(name)
            runs = []
            for backbone in (Small, compiled(Small)):
                task = replace(WORK.task(SOURCES[: kind.info.min_domains]), backbone=partial(encoder, backbone))
                runs.append(fit(kind(kind.Options(), task), WORK.parts(), WORK.protocol(), 0))
            eager, fast = runs
            assert fast.passes == eager.passes != Passes(0, 0)
            assert [e["loss"] for e in fast.epochs] == pytest.approx([e["loss"] for e in eager.epochs], rel=1e-5)
            torch.testing.assert_close(dict(fast.model.state_dict()), dict(eager.model.state_dict()))

    def test_a_deep_copy_runs_on_its_own_weights(self) -> None:
        single = compiled(Small)((1, 3, 8))
        double = copy.deepcopy(single)
        inputs = torch.randn(4, 1, 3, 8)
        with torch.no_grad():
            for parameter in double.parameters():
                parameter.fill_(0.0 if parameter.ndim > 1 else 2.0)
        assert torch.equal(double(inputs), torch.full((4, 64), 2.0))
        assert not torch.equal(single(inputs), double(inputs))
