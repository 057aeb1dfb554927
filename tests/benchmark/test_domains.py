"""Training without a target domain: who sees what, what is hidden from whom, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.joint import Joint
from benchmark.conformance_task import Widths, check_parts, check_protocol, check_task
from benchmark.context import Context, begin
from benchmark.data import Part, Scaling, TaskData
from benchmark.errors import DataError, UsageError
from benchmark.method import Method
from benchmark.model import same_parameters
from benchmark.protocol import Cell, Experiment, Protocol, validated
from benchmark.registry import METHODS
from benchmark.rendering import render
from benchmark.run import build_method, check_cell
from benchmark.tables import build_table
from benchmark.training import fit, initialised
from datasets.av_digits_dg import AVDigitsDG

DOMAINS = ("north", "south", "west")
TASK = replace(check_task(2, Widths.EQUAL), domains=DOMAINS[:2], hidden=16)


class Hiding(Joint):
    adversarial = True


def labelled(parts: dict[str, Part], count: int) -> dict[str, Part]:
    return {name: replace(part, domains=torch.arange(len(part)) % count) for name, part in parts.items()}


def data() -> TaskData:
    parts = labelled(check_parts(2), 3)
    return TaskData(parts, ("m0", "m1"), {}, ("0", "1", "2"), DOMAINS, "")


def places(of: TaskData, part: str) -> Tensor:
    domains = of.parts[part].domains
    assert domains is not None
    return domains


SOURCES = labelled(check_parts(2), 2)


def context(method: Method, **changes: Any) -> Context:
    protocol = check_protocol().changed(changes)
    return begin(method, initialised(method, 0).train(), protocol, 0, SOURCES["train"], SOURCES["val"])


def gradients(method: Method, **changes: Any) -> dict[str, Tensor]:
    """Return all gradients of one step, by parameter name."""
    ctx = context(method, **changes)
    batch = next(iter(SOURCES["train"].batches(12)))
    forward = ctx.forward(batch)
    found = ctx.feature_gradients(forward, method.losses(forward, batch, ctx)["fused"])
    ctx.encoder_backward(forward, found)
    return {name: p.grad.clone() for name, p in ctx.model.named_parameters() if p.grad is not None}


def test_sources_train_and_select_and_the_target_alone_is_tested() -> None:
    whole, left = data(), data().without("south")
    for name in ("train", "val"):
        assert len(left[name]) == places(whole, name).ne(1).sum()
    assert len(left["test"]) == places(whole, "test").eq(1).sum()


def test_domain_labels_count_the_sources_and_the_target_has_none() -> None:
    left = data().without("south")
    assert left["train"].domains is not None
    assert torch.equal(left["train"].domains, torch.tensor([0, 1]).repeat(len(left["train"]))[: len(left["train"])])
    assert left["test"].domains is None


def test_the_test_samples_of_the_sources_are_kept_aside() -> None:
    whole = data()
    every, sources = whole.parts["test"], whole.without("south")["sources"]
    assert sources.domains is not None
    own = places(whole, "test") != 1
    assert torch.equal(sources.labels, every.labels[own])
    assert torch.equal(sources.domains, places(whole, "test")[own] // 2)


def test_normalisation_is_fitted_on_the_sources_training_part() -> None:
    whole = data()
    scaling = {"m0": Scaling(torch.zeros(1), 1.0)}
    whole = replace(whole, parts={name: replace(part, scaling=scaling) for name, part in whole.parts.items()})
    left = whole.without("south")
    seen = torch.cat([batch.inputs["m0"] for batch in left["train"].batches(64)])
    assert seen.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert seen.std(correction=0).item() == pytest.approx(1.0, abs=1e-6)
    assert left["test"].scaling == left["train"].scaling


def test_a_split_may_make_the_parts_without_a_domain_of_others() -> None:
    whole = data()
    made = {"train": ("train", "val"), "val": ("test",), "test": ("train", "val", "test")}
    left = replace(whole, held_out=made).without("south")
    counts = {part: int(places(whole, part).ne(1).sum()) for part in whole.parts}
    assert len(left["train"]) == counts["train"] + counts["val"]
    assert len(left["val"]) == counts["test"]
    assert len(left["test"]) == sum(int(places(whole, part).eq(1).sum()) for part in whole.parts)
    train, val = (whole.parts[part] for part in ("train", "val"))
    sources = [
        part.subset(places(whole, name).ne(1).nonzero()[:, 0]) for name, part in (("train", train), ("val", val))
    ]
    assert torch.equal(left["train"].labels, torch.cat([part.labels for part in sources]))
    for modality, rows in left["train"].rows.items():
        assert torch.equal(rows, torch.cat([part.rows[modality] for part in sources]))


def test_a_card_that_trains_and_validates_on_the_same_part_without_a_domain_is_refused() -> None:
    made = {"train": ("train", "val"), "val": ("val",), "test": ("test",)}
    with pytest.raises(UsageError, match="split 'by_index' trains and validates on the same part 'val'"):
        replace(AVDigitsDG.card, held_out={"by_index": made})
    with pytest.raises(UsageError, match="Unknown held-out split of dataset 'av_digits_dg' 'index'"):
        replace(AVDigitsDG.card, held_out={"index": made})


def test_a_target_without_test_samples_is_refused() -> None:
    whole = data()
    test = whole.parts["test"]
    none = replace(whole, parts={**whole.parts, "test": replace(test, domains=torch.zeros_like(test.labels))})
    with pytest.raises(DataError, match="No sample is left in test when domain 'west' is left out"):
        none.without("west")


def test_the_target_leaks_into_nothing_but_the_final_test() -> None:
    """Every sample of the target is replaced, in all parts: training, validation and selection stay what they were."""
    whole = data()
    # Stored numbers, which are normalised on the way to a method.
    scaling = {"m0": Scaling(torch.zeros(1), 1.0)}
    whole = replace(whole, parts={name: replace(part, scaling=scaling) for name, part in whole.parts.items()})
    generator = torch.Generator().manual_seed(9)

    def disturbed(part: Part) -> Part:
        assert part.domains is not None
        target = part.domains == 1
        inputs = {
            name: torch.where(target[:, None, None, None], torch.randn(values.shape, generator=generator), values)
            for name, values in part.inputs.items()
        }
        return replace(part, inputs=inputs, labels=torch.where(target, 2 - part.labels, part.labels))

    other = replace(whole, parts={name: disturbed(part) for name, part in whole.parts.items()})
    method = Hiding(Hiding.Options(), TASK)
    first, second = (fit(method, found.without("south"), check_protocol(), 0) for found in (whole, other))
    for ours, theirs in zip(first.epochs, second.epochs, strict=True):
        assert {**ours, "test": None} == {**theirs, "test": None}
    assert [epoch["test"] for epoch in first.epochs] != [epoch["test"] for epoch in second.epochs]


def test_encoders_climb_the_domain_loss_that_the_discriminator_descends() -> None:
    method = Hiding(Hiding.Options(), TASK)
    plain, doubled, none = (gradients(method, reversal=weight) for weight in (1.0, 2.0, 0.0))
    name = "encoders.m0.project.weight"
    torch.testing.assert_close(doubled[name] - none[name], 2 * (plain[name] - none[name]))
    assert not torch.equal(plain[name], none[name])
    for other in ("discriminator.0.weight", "head.0.weight"):
        assert torch.equal(plain[other], doubled[other])
    model = initialised(method, 0).train()
    batch = next(iter(SOURCES["train"].batches(12)))
    features = {m: z.detach().requires_grad_() for m, z in model.encode(batch.inputs).items()}
    assert batch.domains is not None
    torch.nn.functional.cross_entropy(model.domain_logits(features, 0.5), batch.domains).backward()
    reversed_ = features["m0"].grad
    features = {m: z.detach().requires_grad_() for m, z in features.items()}
    torch.nn.functional.cross_entropy(model.domain_logits(features, -1.0), batch.domains).backward()
    upright = features["m0"].grad
    assert reversed_ is not None
    assert upright is not None
    torch.testing.assert_close(reversed_, -0.5 * upright)


def test_without_reversal_the_encoders_train_as_without_a_discriminator() -> None:
    hidden, plain = (gradients(kind(kind.Options(), TASK), reversal=0.0) for kind in (Hiding, Joint))
    assert all(torch.equal(hidden[name], value) for name, value in plain.items() if name.startswith("encoders"))
    assert not any(name.startswith("discriminator") for name in plain)


def test_heads_with_a_hidden_layer_answer_for_one_modality_by_zeroing_the_others() -> None:
    model = initialised(Joint(Joint.Options(), TASK), 0)
    features = model.encode(next(iter(SOURCES["test"].batches(5))).inputs)
    zeroed = {"m0": features["m0"], "m1": torch.zeros_like(features["m1"])}
    assert torch.equal(model.unimodal_logits(features)["m0"], model.classify(zeroed))


NEEDS_LINEAR = {"arm", "mmcosine"}


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_trains_on_several_domains_or_says_what_would_work(name: str) -> None:
    kind, task = METHODS.load(name), TASK
    options = kind.Options(**kind.sample_options(task))
    reason = kind.refuses(options, task)
    assert (reason is not None) == (name in NEEDS_LINEAR)
    if reason is not None:
        assert "linear head" in reason
        task = replace(TASK, hidden=None)
    after = fit(kind(options, task), SOURCES, check_protocol().changed({"epochs": 3}), 0).model.discriminator
    assert (after is not None) == kind.adversarial
    if after is not None:
        before = initialised(kind(options, task), 0).discriminator
        assert before is not None
        assert not same_parameters(before, after)


FIELDS: dict[str, Any] = {
    "name": "dg",
    "title": "DG",
    "datasets": ["av_digits"],
    "backbones": ["small"],
    "seeds": 2,
    "protocol": {"epochs": 1},
    "baselines": {"joint": None},
}


def experiment(**changes: Any) -> Experiment:
    return validated(Experiment, {**FIELDS, **changes}, "Experiment 'dg'")


def test_every_target_has_its_own_cells() -> None:
    assert [(c.target, c.seed) for c in experiment(targets=["all"]).cells()] == [
        (target, seed) for target in ("usa", "german", "greek_french") for seed in (0, 1)
    ]
    assert {c.target for c in experiment(targets=["german"]).cells()} == {"german"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ["digits"], "targets": ["all"]}, r"Dataset 'digits' has no domains to leave out"),
        ({"targets": ["germany"]}, r"target domain of dataset 'av_digits' 'germany'\. Did you mean 'german'"),
    ],
)
def test_targets_that_do_not_exist_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        experiment(**changes)


def cell(target: str | None) -> Cell:
    protocol = Protocol(epochs=1, hidden=32)
    return Cell(
        dataset="av_digits", backbone="small", fusion="concat", method="joint", protocol=protocol, seed=0, target=target
    )


def test_a_cell_without_its_target_hides_the_other_domains() -> None:
    assert build_method(cell("german")).task.domains == ("usa", "greek_french")
    assert build_method(cell("german")).task.hidden == 32
    assert build_method(cell(None)).task.domains == ()


def test_a_cell_with_an_unknown_target_cannot_run() -> None:
    with pytest.raises(UsageError, match="Known: german, greek_french, usa"):
        check_cell(cell("moon"))


def record(cell: Cell) -> dict[str, Any]:
    """Accuracy 60, 70 and 80 % on the three targets, one point more with seed 1."""
    assert cell.target is not None
    accuracy = {"usa": 0.6, "german": 0.7, "greek_french": 0.8}[cell.target] + 0.01 * cell.seed
    part = {"accuracy": accuracy}
    return {
        "schema": 1,
        "key": cell.describe(),
        "cell": cell.identity(),
        "epochs": [{"val": part, "test": part}],
        "balance_factor": 0.5,
    }


def test_a_table_shows_the_mean_over_targets_and_each_target() -> None:
    loaded = experiment(targets=["all"])
    table = build_table(loaded, [record(cell) for cell in loaded.cells()])
    column = ("av_digits", "small", "concat")
    values = {m.label: table.entry("joint", column, m.name).values for m in table.measures}
    assert {label: pytest.approx(found) for label, found in values.items()} == {
        "accuracy (%), mean over targets": (70.0, 71.0),
        "balance factor, mean over targets": (0.5, 0.5),
        "accuracy (%), target usa": (60.0, 61.0),
        "accuracy (%), target german": (70.0, 71.0),
        "accuracy (%), target greek_french": (80.0, 81.0),
    }
    assert "Every target domain is left out of training" in render(table, "md")


def test_a_seed_counts_once_all_its_targets_are_there() -> None:
    loaded = experiment(targets=["all"])
    cells = [cell for cell in loaded.cells() if (cell.target, cell.seed) != ("german", 1)]
    table = build_table(loaded, [record(cell) for cell in cells])
    column = ("av_digits", "small", "concat")
    assert table.entry("joint", column, "accuracy").seeds == (0,)
    assert table.entry("joint", column, "accuracy on usa").seeds == (0, 1)
