from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from benchmark import data, run
from benchmark.data import Batch, Part, TaskData, place
from benchmark.errors import DataError
from benchmark.preparation import obtain
from benchmark.prepared import ArrayMeta, Index, Meta, Normalisation, Prepared, SplitMeta
from benchmark.protocol import Cell, Protocol
from benchmark.streaming import AHEAD, RESERVE, Stored, free_bytes, read_ahead, too_large

CPU = torch.device("cpu")
GB = 10**9


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path_factory.getbasetemp() / "data"))


@pytest.mark.parametrize(
    ("sizes", "free", "stay"),
    [
        ({"audio": 6 * GB, "video": 54 * GB}, 140 * GB, ()),
        ({"audio": 6 * GB, "video": 54 * GB}, 120 * GB, ()),
        ({"audio": 6 * GB, "video": 54 * GB}, 119 * GB, ("video",)),
        ({"audio": 6 * GB, "video": 54 * GB, "flow": 26 * GB}, 80 * GB, ("video",)),
        ({"audio": 6 * GB, "video": 54 * GB, "flow": 26 * GB}, 60 * GB, ("video", "flow")),
        ({"audio": 6 * GB, "video": 54 * GB}, 8 * GB, ("audio", "video")),
        ({"audio": 6 * GB, "video": 54 * GB}, 0, ("audio", "video")),
        ({"audio": 6 * GB, "video": 54 * GB}, math.inf, ()),
        ({}, 0, ()),
    ],
)
def test_the_largest_arrays_stay_in_their_files_until_the_rest_fits(
    sizes: dict[str, int], free: float, stay: tuple[str, ...]
) -> None:
    assert RESERVE == 0.5
    assert too_large(sizes, free) == stay


def test_no_array_is_too_large_for_the_cpu() -> None:
    assert too_large({"a": 10**30}, free_bytes(CPU)) == ()


def stored(folder: Path, values: np.ndarray[Any, Any]) -> Stored:
    np.save(folder / "a.npy", values)
    return Stored(np.load(folder / "a.npy", mmap_mode="r"))


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_rows_are_read_as_they_are_in_the_file(tmp_path: Path, dtype: type[np.generic]) -> None:
    values = np.random.default_rng(0).integers(0, 200, (20, 3, 5)).astype(dtype)
    rows = torch.tensor([19, 0, 7, 7])
    found = stored(tmp_path, values).read(rows)
    assert found.numpy().dtype == dtype
    assert np.array_equal(found.numpy(), values[rows.numpy()])


def test_a_file_that_has_become_shorter_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    array = stored(tmp_path / "toy", np.zeros((20, 8), np.uint8))
    os.truncate(tmp_path / "toy" / "a.npy", 128 + 15 * 8 + 3)
    array.read(torch.tensor([14]))
    with pytest.raises(DataError, match=r"a\.npy ends in row 15 of 20\. Run `equipoise prepare toy`"):
        array.read(torch.tensor([14, 15]))


class Slow(Stored):
    """Reads the earlier rows of a shuffled order later, and counts the batches it has begun."""

    begun: list[int]

    def read(self, rows: Tensor, *, pinned: bool = False) -> Tensor:
        self.begun.append(int(rows[0]))
        time.sleep(0.01 * (int(rows[0]) % 3))
        return super().read(rows, pinned=pinned)


def slow(folder: Path) -> Slow:
    array = Slow(stored(folder, np.arange(120, dtype=np.uint8).reshape(40, 3)).mapped)
    object.__setattr__(array, "begun", [])
    return array


def chunks(order: Tensor | None = None) -> dict[str, Sequence[Tensor]]:
    return {"a": (torch.arange(40) if order is None else order).split(4)}


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_batches_come_in_their_order_whatever_the_number_of_threads(tmp_path: Path, threads: int) -> None:
    order = torch.randperm(40, generator=Generator().manual_seed(0))
    found = list(read_ahead({"a": slow(tmp_path)}, chunks(order), CPU, threads=threads, ahead=8))
    assert torch.equal(torch.cat([batch["a"] for batch in found])[:, 0], (3 * order).to(torch.uint8))


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("equipoise reader")]


def test_no_more_batches_are_read_than_stated_before_they_are_asked_for(tmp_path: Path) -> None:
    array = slow(tmp_path)
    batches = read_ahead({"a": array}, chunks(), CPU, threads=2, ahead=3)
    assert readers() == []
    next(batches)
    time.sleep(0.2)
    assert sorted(array.begun) == [0, 4, 8, 12]
    next(batches)
    time.sleep(0.2)
    assert len(array.begun) == 5
    batches.close()


def test_threads_end_with_the_last_batch_and_with_batches_that_are_given_up(tmp_path: Path) -> None:
    array = slow(tmp_path)
    list(read_ahead({"a": array}, chunks(), CPU))
    assert readers() == []
    part = Part({}, {"a": torch.arange(40)}, torch.zeros(40), None, {}, stored={"a": array})
    for _ in part.batches(4):
        assert readers()
        break
    assert readers() == []
    assert len(array.begun) <= 10 + 1 + AHEAD


def test_what_goes_wrong_in_a_thread_is_raised_where_the_batch_is_asked_for(tmp_path: Path) -> None:
    array = stored(tmp_path, np.zeros((40, 3), np.uint8))
    os.truncate(tmp_path / "a.npy", 128 + 20 * 3)
    found = []
    with pytest.raises(DataError, match="ends in row 20 of 40"):
        found += [batch["a"] for batch in read_ahead({"a": array}, chunks(), CPU)]
    batches = read_ahead({"a": array}, chunks(), CPU)
    assert len([next(batches) for _ in range(5)]) == 5
    with pytest.raises(DataError, match="ends in row 20 of 40"):
        next(batches)
    assert readers() == []


def noisy(inputs: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
    return {name: values + torch.rand(values.shape, generator=generator) for name, values in inputs.items()}


def placed(monkeypatch: pytest.MonkeyPatch, free: float, threads: int = 4) -> TaskData:
    monkeypatch.setattr(data, "free_bytes", lambda _device: free)
    monkeypatch.setattr(data, "read_ahead", partial(read_ahead, threads=threads))
    prepared = obtain("digits_dg")
    return place(prepared, next(iter(prepared.meta.splits)), CPU, noisy)


def two_epochs(part: Part) -> list[Batch]:
    order, augment = Generator().manual_seed(1), Generator().manual_seed(2)
    return [batch for _ in range(2) for batch in part.batches(64, order=order, augment=augment)]


def assert_same(first: Part, second: Part) -> None:
    assert first.shapes == second.shapes
    assert list(first.shapes) == list(second.shapes)
    for one, two in zip(two_epochs(first), two_epochs(second), strict=True):
        assert list(one.inputs) == list(two.inputs)
        assert all(torch.equal(one.inputs[name], two.inputs[name]) for name in one.inputs)
        assert torch.equal(one.index, two.index)
        assert torch.equal(one.labels, two.labels)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("names", [("upper", "lower"), ("lower",)])
def test_streamed_batches_are_those_of_resident_arrays_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, threads: int, names: tuple[str, ...]
) -> None:
    resident = placed(monkeypatch, math.inf)
    sizes = {name: array.nbytes for name, array in resident.parts["train"].inputs.items()}
    streamed = placed(monkeypatch, 0 if len(names) == 2 else 2 * sizes["upper"], threads)
    for name in ("train", "val", "test"):
        first, second = resident.parts[name], streamed.parts[name]
        assert (*second.stored,) == names
        assert not first.stored
        assert_same(first, second)
        assert_same(first.subset(torch.tensor([5, 2, 5])), second.subset(torch.tensor([5, 2, 5])))
        assert_same(first.joined([first]), second.joined([second]))
    left_out = streamed.without(streamed.domains[1])
    for name, part in resident.without(resident.domains[1]).items():
        assert_same(part, left_out[name])


def test_moving_a_part_leaves_what_is_stored_in_its_file(tmp_path: Path) -> None:
    array = stored(tmp_path, np.zeros((6, 3), np.float16))
    part = Part(
        {"b": torch.zeros(6, 2)}, dict.fromkeys("ab", torch.arange(6)), torch.zeros(6), None, {}, None, {"a": array}
    )
    moved = part.to(torch.device("meta"))
    assert moved.inputs["b"].is_meta
    assert moved.stored == part.stored
    assert moved.shapes == {"a": (3,), "b": (2,)}


def test_a_cell_trained_from_files_has_the_same_record_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def record(free: float) -> dict[str, Any]:
        monkeypatch.setattr(data, "free_bytes", lambda _device: free)
        run._parts.cache_clear()
        run._data.cache_clear()
        recipe = Protocol(epochs=2)
        return run.run_cell(
            Cell(dataset="digits", backbone="small", fusion="concat", method="joint", protocol=recipe, seed=0)
        )

    try:
        resident, streamed = record(math.inf), record(10_000)
    finally:
        run._parts.cache_clear()
        run._data.cache_clear()
    assert resident["epochs"] == streamed["epochs"]
    assert resident["final"] == streamed["final"]
    assert resident["provenance"]["streamed"] == []
    assert streamed["provenance"]["streamed"] == ["upper", "lower"]
    assert "digits: upper (0.0 GB) is read from its file while training: 0.0 GB are free on cpu." in caplog.messages


def test_on_the_cpu_an_array_larger_than_the_machines_memory_is_read_from_its_file(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    side = 1 << 20
    rows = 2 * memory // side
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (rows, side)})
        start = stream.tell()
        for number in (0, rows // 2, rows - 1):  # all else is a hole, which takes no room on the disk
            stream.seek(start + number * side)
            stream.write(bytes([number % 200 + 1]) * side)
    array = ArrayMeta(file="a.npy", dtype="|u1", shape=(side,), rows=rows, bytes=0, sha256="")
    split = SplitMeta(counts={}, normalisation={"a": Normalisation(mean=0.0, std=1.0)})
    meta = Meta(
        dataset="toy",
        classes=("x",),
        domains=(),
        samples=3,
        modalities={"a": array},
        splits={"s": split},
        index_sha256="",
        manifest_digest="",
        source_digest="",
    )
    own = np.array([0, rows // 2, rows - 1])
    index = Index(("i", "j", "k"), np.zeros(3, np.int64), None, {"a": own}, {"s": np.array(["train"] * 3)})
    part = place(Prepared(tmp_path, meta, index), "s", "cpu").parts["train"]
    assert not part.stored
    (batch,) = part.batches(3)
    assert batch.inputs["a"][:, ::1000].unique(dim=1).flatten().tolist() == [number % 200 + 1 for number in own]


@pytest.mark.gpu
def test_batches_streamed_to_the_gpu_are_those_of_arrays_that_live_there(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = obtain("digits_dg")
    split = next(iter(prepared.meta.splits))
    resident = place(prepared, split, "cuda")
    assert not resident.parts["train"].stored
    monkeypatch.setattr(data, "free_bytes", lambda _device: 0)
    streamed = place(prepared, split, "cuda")
    assert_same(resident.parts["train"], streamed.parts["train"])
    assert_same(resident.parts["train"].to(CPU), streamed.parts["train"])
