from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmark.data import load
from benchmark.dataset import PARTS
from benchmark.preparation import obtain
from datasets._digit_domains import dealt, rotated
from datasets.digits.images import handwritten_digits

DOMAINS = ("r0", "r30", "r60")
COUNTS = {
    "r0": {"train": 417, "val": 60, "test": 125},
    "r30": {"train": 416, "val": 60, "test": 123},
    "r60": {"train": 415, "val": 60, "test": 121},
}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One prepared form for all tests here: they only read it."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_DATA", str(folder))
        obtain("digits_dg")
    return folder


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(home))


def turned_by_hand(image: NDArray[np.uint8], degrees: float) -> NDArray[np.float64]:
    """Bilinear interpolation at the place that a counter-clockwise turn brings to each pixel; 0 outside."""
    angle, centre = np.deg2rad(degrees), 3.5
    found = np.zeros((8, 8))
    for row, column in np.ndindex(8, 8):
        # Upwards is towards row 0: the place is found by turning the pixel's own clockwise.
        right, up = column - centre, centre - row
        x = centre + right * np.cos(angle) + up * np.sin(angle)
        y = centre - (up * np.cos(angle) - right * np.sin(angle))
        if 0 <= x <= 7 and 0 <= y <= 7:
            left, top = min(int(x), 6), min(int(y), 6)
            across, down = x - left, y - top
            corners = image[top : top + 2, left : left + 2]
            found[row, column] = np.array([1 - down, down]) @ corners @ np.array([1 - across, across])
    return found


def test_every_domain_has_about_six_hundred_images_in_three_parts() -> None:
    index = obtain("digits_dg").index
    assert index.domains is not None
    found = Counter(zip(index.domains.tolist(), index.parts["stratified"].tolist(), strict=True))
    assert {(DOMAINS[domain], part): count for (domain, part), count in found.items()} == {
        (domain, part): count for domain, counts in COUNTS.items() for part, count in counts.items()
    }


def test_a_class_has_58_to_61_images_in_every_domain() -> None:
    _, labels = handwritten_digits()
    counts = Counter(zip(dealt(labels.tolist(), 3), labels.tolist(), strict=True))
    assert len(counts) == 30
    assert set(counts.values()) == {58, 59, 60, 61}


def test_every_image_is_in_exactly_one_domain_and_part() -> None:
    data = load("digits_dg")
    assert sorted(torch.cat([part.rows["upper"] for part in data.parts.values()]).tolist()) == list(range(1797))
    assert obtain("digits_dg").index.ids == tuple(f"digit-{number:04d}" for number in range(1797))


def test_labels_are_the_digits() -> None:
    _, labels = handwritten_digits()
    assert obtain("digits_dg").index.labels.tolist() == labels.tolist()


def test_the_deal_is_the_same_in_every_library_version() -> None:
    content = (obtain("digits_dg").folder / "index.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "6af3e32da1b8e4ce2e4686b6ac2982b6fe58bef4d2c983d8c996506e2fbae09c"


def test_images_are_dealt_in_turn_in_the_order_of_their_hashes() -> None:
    _, labels = handwritten_digits()
    domains = dealt(labels.tolist(), 3)
    zeros = sorted(
        np.flatnonzero(labels == 0).tolist(), key=lambda i: hashlib.sha256(f"avd0:img:{i}".encode()).hexdigest()
    )
    assert [domains[image] for image in zeros] == [rank % 3 for rank in range(178)]


def test_whole_images_are_rotated_by_the_angle_of_their_domain_and_then_cut() -> None:
    prepared = obtain("digits_dg")
    images, _ = handwritten_digits()
    whole = np.concatenate([prepared.array("upper"), prepared.array("lower")], axis=2)[:, 0]
    assert whole.dtype == np.float16
    assert prepared.index.domains is not None
    for domain, degrees in enumerate((0, 30, 60)):
        for number in np.flatnonzero(prepared.index.domains == domain)[:20]:
            np.testing.assert_allclose(whole[number], turned_by_hand(images[number], degrees), atol=0.01)


def test_a_rotation_is_counter_clockwise_and_stays_within_the_range() -> None:
    image = np.zeros((1, 8, 8))
    image[0, 2, 7] = 16
    assert rotated(image, 90, largest=16)[0].round(6).nonzero() == (np.array([0]), np.array([2]))
    images, _ = handwritten_digits()
    found = rotated(images, 30, largest=16)
    assert found.min() == 0
    assert found.max() <= 16


def test_leaving_a_rotation_out_trains_on_the_other_two_and_tests_on_it() -> None:
    data = load("digits_dg")
    assert data.domains == DOMAINS
    for target in DOMAINS:
        sources = [domain for domain in DOMAINS if domain != target]
        parts = data.without(target)
        expected = {part: sum(COUNTS[domain][part] for domain in sources) for part in ("train", "val")}
        assert {part: len(parts[part]) for part in PARTS} == {**expected, "test": COUNTS[target]["test"]}
        for part in ("train", "val"):
            domains = parts[part].domains
            assert domains is not None
            assert domains.bincount().tolist() == [COUNTS[domain][part] for domain in sources]
