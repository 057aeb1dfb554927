from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from benchmark.dataset import Checksum, Dataset, DatasetCard, Source, stratified_parts
from benchmark.errors import DataError, SchemaError, UsageError
from benchmark.preparation import PreparedWriter, fit_normalisation, obtain, write_prepared
from benchmark.prepared import Prepared, open_prepared
from benchmark.registry import DATASETS

DIGEST = "a" * 64
LABELS = [0, 1, 0, 1, 0, 1]
PARTS = ["train", "train", "val", "val", "test", "test"]


class Toy(Dataset):
    """Six samples; `sound` has one row each, the two samples of a part share a row of `picture`."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="toy",
        title="Toy",
        licence="CC0",
        citation="none",
        shapes={"sound": (2, 3), "picture": (1, 2, 2)},
        classes=("cat", "dog"),
        domains=("indoor", "outdoor"),
        splits={"plain": "as it comes"},
        default_split="plain",
    )
    sound = np.arange(36, dtype=np.float16).reshape(6, 2, 3)
    picture = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)
    samples: ClassVar[dict[str, Any]] = {
        "splits": {"plain": PARTS},
        "domains": [0, 1, 0, 1, 0, 1],
        "rows": {"picture": [0, 0, 1, 1, 2, 2]},
    }
    ids = tuple("abcdef")
    labels: ClassVar[list[int]] = LABELS

    def prepare(self, raw: Path, out: PreparedWriter) -> None:
        out.array("sound", self.sound)
        out.array("picture", self.picture)
        out.samples(self.ids, self.labels, **self.samples)


def write(folder: Path, **changes: Any) -> Prepared:
    return write_prepared(type("Toy", (Toy,), changes)(), folder / "raw", folder / "toy", DIGEST, say=lambda _: None)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    prepared = write(tmp_path)
    assert np.array_equal(prepared.array("sound"), Toy.sound)
    assert prepared.array("sound").dtype == np.float16
    assert np.array_equal(prepared.array("picture"), Toy.picture)
    assert prepared.array("picture").dtype == np.uint8
    assert prepared.index.labels.tolist() == LABELS
    assert prepared.index.rows["sound"].tolist() == [0, 1, 2, 3, 4, 5]
    assert prepared.index.rows["picture"].tolist() == [0, 0, 1, 1, 2, 2]
    assert prepared.index.parts["plain"].tolist() == PARTS
    assert prepared.index.domains is not None
    assert prepared.index.domains.tolist() == [0, 1, 0, 1, 0, 1]


def test_index_names_classes_and_domains_and_leaves_counting_rows_out(tmp_path: Path) -> None:
    prepared = write(tmp_path)
    lines = (prepared.folder / "index.csv").read_bytes().split(b"\n")
    assert lines[:3] == [
        b"id,label,domain,picture_row,plain",
        b"a,cat,indoor,0,train",
        b"b,dog,outdoor,0,train",
    ]


def test_a_census_is_kept_with_its_split_and_changes_no_other_file(tmp_path: Path) -> None:
    counts = {"plain": {"train": {"listed": 3, "found": 2}}}

    def prepare(self: Toy, raw: Path, out: PreparedWriter) -> None:
        Toy.prepare(self, raw, out)
        out.census(counts)

    counted, plain = write(tmp_path / "1", prepare=prepare), write(tmp_path / "2")
    assert counted.meta.splits["plain"].census == counts["plain"]
    assert plain.meta.splits["plain"].census == {}
    assert "census" not in (plain.folder / "meta.json").read_text()
    assert counted.meta.content_digest == plain.meta.content_digest


def test_preparing_twice_gives_the_same_bytes_and_content_digest(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1"), write(tmp_path / "2")
    for file in first.folder.iterdir():
        assert file.read_bytes() == (second.folder / file.name).read_bytes()
    other = write(tmp_path / "3", sound=Toy.sound + 1)
    assert first.meta.content_digest == second.meta.content_digest != other.meta.content_digest


def test_normalisation_is_fitted_on_training_rows_alone(tmp_path: Path) -> None:
    fitted = write(tmp_path).meta.splits["plain"].normalisation
    assert fitted["sound"].mean == pytest.approx(Toy.sound[:2].mean())
    assert fitted["sound"].std == pytest.approx(np.arange(12).std())


def test_normalisation_counts_a_row_that_many_samples_share_once(tmp_path: Path) -> None:
    samples = {"splits": {"plain": ["train", *PARTS]}, "rows": {"picture": [0, 0, 1, 2, 2, 3, 3]}}
    fitted = write(
        tmp_path,
        ids=tuple("abcdefg"),
        labels=[0, *LABELS],
        sound=np.arange(42, dtype=np.float16).reshape(7, 2, 3),
        picture=np.arange(16, dtype=np.uint8).reshape(4, 1, 2, 2),
        samples=samples,
    ).meta.splits["plain"]
    assert fitted.normalisation["picture"].mean == pytest.approx(np.arange(8).mean())
    assert fitted.counts == {"train": 3, "val": 2, "test": 2}


def test_normalisation_of_many_blocks_equals_numpy_and_of_a_constant_has_deviation_one() -> None:
    values = np.random.default_rng(0).normal(3, 2, (50, 7))
    fitted = fit_normalisation(values, np.arange(50), largest=8 * 7)
    assert (fitted.mean, fitted.std) == pytest.approx((values.mean(), values.std()))
    assert fit_normalisation(np.full((4, 2), 5.0), np.arange(4)).std == 1.0


def test_normalisation_about_a_fixed_zero_keeps_it_and_takes_the_deviation_from_there() -> None:
    fitted = fit_normalisation(np.array([[125.0], [131.0], [137.0]]), np.array([0, 1]), zero=128)
    assert (fitted.mean, fitted.std) == (128, 3)


def test_a_mapped_array_cannot_be_changed(tmp_path: Path) -> None:
    prepared = write(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        prepared.array("sound")[:] = 0
    assert np.array_equal(prepared.array("sound"), Toy.sound)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sound": Toy.sound[:, :1]}, r"sound samples have shape \(1, 3\), its card says \(2, 3\)"),
        ({"sound": np.full((6, 2, 3), np.inf, np.float16)}, "sound holds values that are not finite"),
        ({"labels": [0, 1, 0, 1, 0, 2]}, r"label 2 is outside 0 \.\. 1"),
        ({"labels": [0, 1]}, "6 ids, but 2 values of 'label'"),
        ({"ids": tuple("abcdee")}, "6 samples have 5 different ids"),
        ({"samples": {**Toy.samples, "rows": {"picture": [0, 0, 1, 1, 2, 3]}}}, "picture row 3 is outside"),
        (
            {"samples": {**Toy.samples, "rows": {"picture": [0, 0, 1, 1, 0, 2]}}},
            r"picture row 0 is in both train and test of split 'plain' \(samples a, b, e; 1 such rows\)",
        ),
        (
            {"samples": {**Toy.samples, "splits": {"plain": ["train"] * 3 + ["test"] * 3}}},
            "split 'plain' has",
        ),
        ({"samples": {**Toy.samples, "splits": {"other": PARTS}}}, r"splits \['other'\]"),
    ],
)
def test_contradictions_are_refused_before_anything_is_in_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path, **changes)
    assert not (tmp_path / "toy").exists()


def test_a_failing_preparation_keeps_the_previous_data(tmp_path: Path) -> None:
    before = write(tmp_path)
    with pytest.raises(DataError):
        write(tmp_path, ids=tuple("abcdee"))
    assert open_prepared(Toy.card, before.folder, DIGEST).index.ids == Toy.ids
    assert not (tmp_path / ".toy.new").exists()


def test_what_a_killed_preparation_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".toy.new").mkdir()
    (tmp_path / ".toy.new" / "half.npy").touch()
    prepared = write(tmp_path)
    assert sorted(file.name for file in prepared.folder.iterdir()) == [
        "index.csv",
        "meta.json",
        "picture.npy",
        "sound.npy",
    ]


def test_a_full_disk_is_one_sentence_and_keeps_the_previous_data(tmp_path: Path) -> None:
    before = write(tmp_path)

    def prepare(_self: Toy, _raw: Path, out: PreparedWriter) -> None:
        (tmp_path / ".toy.new" / "sound.npy").symlink_to("/dev/full")
        out.array("sound", Toy.sound)

    with pytest.raises(DataError, match=r"disk is full while writing .*toy.* `equipoise prepare toy` again"):
        write(tmp_path, prepare=prepare)
    assert open_prepared(Toy.card, before.folder, DIGEST).index.ids == Toy.ids


def test_missing_data_say_which_commands_to_run(tmp_path: Path) -> None:
    source = Source(file="toy.zip", urls=("https://example.org/toy.zip",), checksum=Checksum("0" * 64))
    with pytest.raises(DataError, match=r"no prepared data in .* Run `equipoise prepare toy`"):
        open_prepared(Toy.card, tmp_path, DIGEST)
    with pytest.raises(DataError, match="Run `equipoise fetch toy`, then `equipoise prepare toy`"):
        open_prepared(replace(Toy.card, sources=(source,)), tmp_path, DIGEST)


def test_a_truncated_array_is_refused_with_both_sizes(tmp_path: Path) -> None:
    prepared = write(tmp_path)
    file = prepared.folder / "sound.npy"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"sound\.npy has 190 bytes instead of 200\. Run `equipoise prepare toy`"):
        open_prepared(Toy.card, prepared.folder, DIGEST)
    file.unlink()
    with pytest.raises(DataError, match=r"sound\.npy has 0 bytes"):
        open_prepared(Toy.card, prepared.folder, DIGEST)


def test_a_changed_index_is_refused(tmp_path: Path) -> None:
    prepared = write(tmp_path)
    file = prepared.folder / "index.csv"
    file.write_text(file.read_text().replace("cat", "dog"))
    with pytest.raises(DataError, match=r"index\.csv is missing or was changed"):
        open_prepared(Toy.card, prepared.folder, DIGEST)


def test_data_of_another_version_of_the_dataset_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path).folder
    with pytest.raises(DataError, match=r"another version .*\(aaaaaaaaaaaa, now bbbbbbbbbbbb\)\. Run `equipoise prep"):
        open_prepared(Toy.card, folder, "b" * 64)
    source = Source(file="toy.zip", urls=("https://example.org/toy.zip",), checksum=Checksum("0" * 64))
    with pytest.raises(DataError, match="another version"):
        open_prepared(replace(Toy.card, sources=(source,)), folder, DIGEST)


def test_a_newer_schema_is_refused_as_such(tmp_path: Path) -> None:
    file = write(tmp_path).folder / "meta.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 2, "colour": "red"}))
    with pytest.raises(SchemaError, match=r"has schema 2; known is 1\. Update equipoise"):
        open_prepared(Toy.card, file.parent, DIGEST)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}'])
def test_an_unreadable_meta_file_is_refused(tmp_path: Path, text: str) -> None:
    file = write(tmp_path).folder / "meta.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"meta\.json is unreadable .* Run `equipoise prepare toy`"):
        open_prepared(Toy.card, file.parent, DIGEST)


def test_sources_are_verified_and_counted_before_preparation(tmp_path: Path) -> None:
    content = b"raw"
    source = Source(file="toy.bin", obtain="Ask the author.", checksum=Checksum(hashlib.sha256(content).hexdigest(), 3))
    card = replace(Toy.card, sources=(source,))
    with pytest.raises(DataError, match=r"1 expected, 0 found.*toy\.bin is missing.*Run `equipoise fetch toy`"):
        write(tmp_path, card=card)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "toy.bin").write_bytes(b"rAw")
    with pytest.raises(DataError, match=r"1 found, 1 broken \(toy\.bin: sha256 .* instead of"):
        write(tmp_path, card=card)
    (tmp_path / "raw" / "toy.bin").write_bytes(content)
    assert write(tmp_path, card=card).meta.samples == 6


def test_processes_that_need_a_dataset_at_once_prepare_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    digits = DATASETS.load("digits")
    original = digits.prepare
    runs: list[Path] = []

    def counted(self: Dataset, raw: Path, out: PreparedWriter) -> None:
        runs.append(raw)
        original(self, raw, out)

    monkeypatch.setattr(digits, "prepare", counted)
    opened: list[Prepared] = []
    threads = [threading.Thread(target=lambda: opened.append(obtain("digits"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [prepared.meta.samples for prepared in opened] == [1797] * 4
    assert len(runs) == 1


def test_a_dataset_without_sources_is_prepared_again_when_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    file = obtain("digits").folder / "upper.npy"
    size = file.stat().st_size
    file.write_bytes(b"")
    assert (obtain("digits").folder / "upper.npy").stat().st_size == size


def test_a_dataset_with_sources_is_never_prepared_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="Run `equipoise fetch av_digits`, then `equipoise prepare av_digits`"):
        obtain("av_digits")


def test_a_card_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Unknown default split of dataset 'toy' 'plane'\. Did you mean 'plain'"):
        replace(Toy.card, default_split="plane")
    with pytest.raises(
        UsageError, match=r"Unknown zero in dataset .toy. of the modality .sounds.\. Did you mean .sound."
    ):
        replace(Toy.card, zeros={"sounds": 128})
    with pytest.raises(UsageError, match=r"x\.zip has no checksum"):
        replace(Toy.card, sources=(Source(file="x.zip", urls=("https://example.org/x.zip",)),))
    with pytest.raises(UsageError, match=r"x\.zip has no URL"):
        replace(Toy.card, sources=(Source(file="x.zip", checksum=Checksum("0" * 64)),))
    with pytest.raises(UsageError, match=r"clips has no URL\. Add one, or how to obtain it"):
        replace(Toy.card, sources=(Source(file="clips", suffix=".mp4", urls=("https://example.org/clips",)),))


def test_stratified_parts_cut_every_class_in_the_order_of_its_keys_digests() -> None:
    keys = [f"key-{number}" for number in range(30)]
    labels = [number % 3 for number in range(30)]
    parts = stratified_parts(keys, labels)
    for label in range(3):
        members = sorted(
            (key for key, own in zip(keys, labels, strict=True) if own == label),
            key=lambda key: hashlib.sha256(key.encode()).hexdigest(),
        )
        assert [parts[keys.index(key)] for key in members] == ["train"] * 7 + ["val"] + ["test"] * 2


@dataclass(frozen=True)
class Note:
    """What is known of a row."""

    name: str
    faults: tuple[str, ...] = ()


def store(out: PreparedWriter, modality: str, rows: NDArray[Any], count: int, kind: DTypeLike) -> list[Note]:
    def made(done: int) -> Generator[tuple[dict[str, NDArray[Any]], Note], None, None]:
        return (({modality: row}, Note(f"row {n}", ("odd",) * (n % 2))) for n, row in enumerate(rows[done:], done))

    return out.store([f"key {n}" for n in range(count)], {modality: kind}, made, Note)


def test_rows_stored_one_by_one_give_the_same_file_as_an_array(tmp_path: Path) -> None:
    notes: list[Note] = []

    def prepare(self: Toy, _raw: Path, out: PreparedWriter) -> None:
        notes.extend(store(out, "sound", self.sound, 6, np.float16))
        store(out, "picture", self.picture, 3, np.uint8)
        assert np.array_equal(out.stored("sound")[np.array([4, 1])], self.sound[[4, 1]])
        out.samples(self.ids, self.labels, **self.samples)

    assert write(tmp_path / "rows", prepare=prepare).meta == write(tmp_path / "array").meta
    assert notes == [Note(f"row {n}", ("odd",) * (n % 2)) for n in range(6)]


@pytest.mark.parametrize(
    ("modality", "rows", "message"),
    [
        ("sound", Toy.sound[:4], "toy: sound has 4 rows instead of 6"),
        ("sound", np.concatenate([Toy.sound, Toy.sound]), "toy: sound has 12 rows instead of 6"),
        ("sound", Toy.sound.astype(np.float32), "toy: sound rows have dtype float32, not float16"),
        ("sound", Toy.sound[:, :1], r"toy: sound samples have shape \(1, 3\)"),
        ("smell", Toy.sound, r"toy: smell is no modality of its card \(sound, picture\)"),
    ],
)
def test_rows_that_contradict_what_was_declared_are_refused(
    tmp_path: Path, modality: str, rows: NDArray[Any], message: str
) -> None:
    def prepare(_self: Toy, _raw: Path, out: PreparedWriter) -> None:
        store(out, modality, rows, 6, np.float16)

    with pytest.raises(DataError, match=message):
        write(tmp_path, prepare=prepare)
    assert not (tmp_path / "toy").exists()
