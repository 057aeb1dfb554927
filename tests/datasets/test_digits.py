from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch

from benchmark.data import load
from benchmark.errors import DataError
from datasets.digits import images as bundled
from datasets.digits.images import handwritten_digits, image_parts


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    return tmp_path


def test_digits_is_prepared_on_first_use_without_any_download(home: Path) -> None:
    data = load("digits")
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 1252, "val": 181, "test": 364}
    assert (home / "prepared" / "digits" / "meta.json").is_file()
    assert not (home / "raw").exists()


def test_upper_is_rows_one_to_three_and_lower_the_other_five() -> None:
    data = load("digits")
    assert data.shapes == {"upper": (1, 3, 8), "lower": (1, 5, 8)}
    images, _ = handwritten_digits()
    inputs = data.parts["train"].inputs
    whole = torch.cat([inputs["upper"], inputs["lower"]], dim=2)
    assert whole.dtype == torch.uint8
    assert np.array_equal(whole[:, 0].numpy(), images)


def test_every_image_is_in_exactly_one_part_with_its_own_label() -> None:
    data = load("digits")
    _, labels = handwritten_digits()
    rows = {name: part.rows["upper"] for name, part in data.parts.items()}
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(1797))
    for name, part in data.parts.items():
        assert part.labels.tolist() == labels[rows[name].numpy()].tolist()


def test_every_class_is_split_seventy_ten_twenty() -> None:
    _, labels = handwritten_digits()
    parts = np.array(image_parts(labels))
    counts = {part: np.bincount(labels[parts == part]).tolist() for part in ("train", "val", "test")}
    assert counts == {
        "train": [124, 127, 123, 128, 126, 127, 126, 125, 121, 125],
        "val": [18, 18, 18, 18, 18, 18, 18, 18, 18, 19],
        "test": [36, 37, 36, 37, 37, 37, 37, 36, 35, 36],
    }


def test_the_split_is_the_same_in_every_library_version() -> None:
    _, labels = handwritten_digits()
    parts = ",".join(image_parts(labels))
    assert (
        hashlib.sha256(parts.encode()).hexdigest() == "d7c1ff77ebe4eb48b52cb7a5d267c63207e820ad82accb2aaa5f20ff231dbf60"
    )


def test_training_part_has_mean_zero_and_standard_deviation_one() -> None:
    batch = next(load("digits").parts["train"].batches(2000))
    for values in batch.inputs.values():
        assert values.dtype == torch.float32
        assert values.mean().item() == pytest.approx(0, abs=1e-5)
        assert values.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_other_bundled_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = sklearn.datasets.load_digits()
    changed.images[0, 0, 0] += 1
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: changed)
    with pytest.raises(DataError, match=rf"digit images .* instead of {bundled.IMAGES_SHA256[:12]}"):
        handwritten_digits()
