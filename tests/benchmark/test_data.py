from __future__ import annotations

import time

import pytest
import torch

from benchmark.data import Part, Scaling, load
from benchmark.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path_factory.getbasetemp() / "data"))


def shuffler(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def part() -> Part:
    """Ten samples whose `a` is their position and whose `b` is a hundred times that."""
    positions = torch.arange(10.0)
    return Part.from_tensors(
        {"a": positions[:, None], "b": 100 * positions[:, None, None]},
        torch.arange(10) % 3,
        domains=torch.arange(10) % 2,
    )


def test_batches_come_in_sample_order_with_a_smaller_last_one(part: Part) -> None:
    batches = list(part.batches(4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(10))
    assert torch.cat([batch.inputs["a"] for batch in batches]).flatten().tolist() == list(range(10))


def test_every_field_of_a_shuffled_batch_belongs_to_the_same_samples(part: Part) -> None:
    batches = list(part.batches(3, order=shuffler()))
    for batch in batches:
        assert batch.inputs["a"].shape == (len(batch), 1)
        assert batch.inputs["b"].shape == (len(batch), 1, 1)
        assert batch.inputs["a"].flatten().tolist() == batch.index.tolist()
        assert (batch.inputs["b"].flatten() / 100).tolist() == batch.index.tolist()
        assert batch.labels.tolist() == (batch.index % 3).tolist()
        assert batch.domains is not None
        assert batch.domains.tolist() == (batch.index % 2).tolist()
    order = torch.cat([batch.index for batch in batches]).tolist()
    assert order != sorted(order)
    assert sorted(order) == list(range(10))


def test_order_repeats_with_its_generator_and_changes_with_the_next_draw(part: Part) -> None:
    generator = shuffler()
    epochs = [torch.cat([batch.index for batch in part.batches(4, order=generator)]) for _ in range(2)]
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[0], torch.cat([batch.index for batch in part.batches(4, order=shuffler())]))


def test_order_is_drawn_at_the_call_however_far_the_batches_are_read(part: Part) -> None:
    read, unread = shuffler(), shuffler()
    list(part.batches(4, order=read))
    part.batches(4, order=unread)
    assert torch.equal(read.get_state(), unread.get_state())


def test_indices_pick_samples_in_their_order_and_keep_positions_of_the_part(part: Part) -> None:
    indices = torch.tensor([7, 7, 2])
    batch = next(part.batches(8, indices=indices))
    assert batch.index.tolist() == [7, 7, 2]
    assert batch.inputs["a"].flatten().tolist() == [7, 7, 2]
    assert batch.labels.tolist() == [1, 1, 2]
    shuffled = next(part.batches(8, indices=torch.arange(5), order=shuffler()))
    assert sorted(shuffled.index.tolist()) == [0, 1, 2, 3, 4]


def test_others_are_all_samples_but_those_named(part: Part) -> None:
    assert part.others(torch.tensor([7, 0, 7])).tolist() == [1, 2, 3, 4, 5, 6, 8, 9]
    assert part.others(torch.tensor([], dtype=torch.long)).tolist() == list(range(10))


def test_no_indices_give_no_batches(part: Part) -> None:
    assert list(part.batches(4, indices=torch.tensor([], dtype=torch.long))) == []


def test_a_subset_counts_its_own_positions_and_shares_the_arrays(part: Part) -> None:
    subset = part.subset(torch.tensor([9, 4]))
    (batch,) = subset.batches(4)
    assert len(subset) == 2
    assert batch.index.tolist() == [0, 1]
    assert batch.inputs["a"].flatten().tolist() == [9, 4]
    assert batch.labels.tolist() == [0, 1]
    assert batch.domains is not None
    assert batch.domains.tolist() == [1, 0]
    assert subset.inputs["a"].data_ptr() == part.inputs["a"].data_ptr()
    assert subset.subset(torch.tensor([1])).rows["a"].tolist() == [4]


def test_moving_a_part_moves_everything_a_batch_is_made_of() -> None:
    moved = load("digits").parts["val"].to(torch.device("meta"))
    batch = next(moved.subset(torch.arange(5)).batches(4, order=shuffler()))
    assert {tensor.device.type for tensor in (*batch.inputs.values(), batch.labels, batch.index)} == {"meta"}
    assert batch.inputs["lower"].shape == (4, 1, 5, 8)


def test_changing_a_batch_in_place_leaves_the_part_as_it_was(part: Part) -> None:
    next(part.batches(10)).inputs["a"].zero_()
    assert next(part.batches(10)).inputs["a"].flatten().tolist() == list(range(10))


def test_given_tensors_are_passed_on_in_their_own_type() -> None:
    part = Part.from_tensors({"a": torch.rand(3, 2, dtype=torch.float64)}, torch.tensor([0, 1, 0], dtype=torch.int32))
    batch = next(part.batches(3))
    assert batch.inputs["a"].dtype == torch.float64
    assert batch.labels.dtype == torch.int64
    assert batch.domains is None
    assert part.shapes == {"a": (2,)}


def test_tensors_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match=r"as many values as labels \(3\). Found {'a': 3, 'b': 2}"):
        Part.from_tensors({"a": torch.rand(3, 1), "b": torch.rand(2, 1)}, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_compact_values_become_normalised_float32(dtype: torch.dtype) -> None:
    values = torch.tensor([[0], [4], [16]]).to(dtype)
    rows = torch.tensor([2, 2, 0, 1])
    scaling = Scaling(torch.tensor([-4.0 / 2.0]), 1 / 2.0)
    part = Part({"a": values}, {"a": rows}, torch.zeros(4, dtype=torch.long), None, {"a": scaling})
    batch = next(part.batches(4))
    assert batch.inputs["a"].dtype == torch.float32
    assert batch.inputs["a"].flatten().tolist() == [6, 6, -2, 0]


def test_augmentation_sees_decoded_values_and_only_where_a_generator_is_given() -> None:
    part = Part(
        {"a": torch.tensor([[1], [2]], dtype=torch.uint8)},
        {"a": torch.arange(2)},
        torch.zeros(2, dtype=torch.long),
        None,
        {"a": Scaling(torch.tensor([0.0]), 0.5)},
        lambda inputs, generator: {"a": inputs["a"] + torch.randint(10, 20, (2, 1), generator=generator)},
    )
    assert next(part.batches(2)).inputs["a"].flatten().tolist() == [0.5, 1]
    first, again = (next(part.batches(2, augment=shuffler())).inputs["a"] for _ in range(2))
    assert (first >= 10.5).all()
    assert torch.equal(first, again)
    assert (next(part.subset(torch.arange(2)).batches(2, augment=shuffler())).inputs["a"] >= 10.5).all()


def test_parts_of_a_dataset_share_their_arrays() -> None:
    data = load("digits")
    assert data.modalities == ("upper", "lower")
    assert data.classes == tuple("0123456789")
    assert data.domains == ()
    assert len({part.inputs["lower"].data_ptr() for part in data.parts.values()}) == 1


def test_loading_twice_gives_the_same_digest_and_batches() -> None:
    first, second = load("digits"), load("digits", "stratified")
    assert first.digest == second.digest
    one, two = (next(data.parts["train"].batches(64, order=shuffler())) for data in (first, second))
    assert torch.equal(one.inputs["upper"], two.inputs["upper"])
    assert torch.equal(one.labels, two.labels)


def test_an_unknown_split_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"split of dataset 'digits' 'stratifed'\. Did you mean 'stratified'"):
        load("digits", "stratifed")


def test_an_unknown_dataset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"Unknown dataset 'digit'\. Did you mean 'digits'"):
        load("digit")


@pytest.mark.timing
def test_a_batch_of_digits_costs_less_than_sixty_microseconds() -> None:
    part = load("digits").parts["train"]
    seconds = []
    for epoch in range(20):
        start = time.perf_counter()
        count = sum(1 for _ in part.batches(64, order=shuffler(epoch)))
        seconds.append((time.perf_counter() - start) / count)
    print(f"{min(seconds) * 1e6:.1f} microseconds per batch")  # noqa: T201 - the figure
    assert min(seconds) < 60e-6
