from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import yaml

from benchmark.data import load
from benchmark.fetchable import fetch_named
from benchmark.paths import SOURCE_ROOT
from benchmark.preparation import prepare
from benchmark.registry import DATASETS
from datasets._digit_domains import dealt
from datasets.av_digits import RECORDINGS, AVDigits
from datasets.av_digits.pairs import Recording
from datasets.av_digits_dg import AVDigitsDG
from datasets.av_digits_dg.pairs import image_parts, paired_images, recording_part
from datasets.av_digits_dg.styles import styled
from datasets.digits.images import handwritten_digits

if TYPE_CHECKING:
    from tests.datasets.conftest import Spoken

LABELS = handwritten_digits()[1].tolist()
DOMAINS = dealt(LABELS, 3)
PARTS = image_parts(LABELS, DOMAINS)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Recording, int]]:
    """Recording and image, for the 3,000 names of the real manifest."""
    recordings = [Recording.from_path(path) for path in sorted(RECORDINGS.files)]
    return list(zip(recordings, paired_images(recordings, LABELS, DOMAINS, PARTS), strict=True))


def test_every_domain_has_700_100_and_200_recordings(pairs: list[tuple[Recording, int]]) -> None:
    counts = Counter((recording.domain, recording_part(recording)) for recording, _ in pairs)
    expected = {"train": 700, "val": 100, "test": 200}
    assert counts == {(domain, part): count for domain in range(3) for part, count in expected.items()}


def test_a_speaker_is_in_one_domain(pairs: list[tuple[Recording, int]]) -> None:
    domains = defaultdict(set)
    for recording, _ in pairs:
        domains[AVDigitsDG.card.domains[recording.domain]].add(recording.speaker)
    assert domains == {
        "usa": {"jackson", "theo"},
        "german": {"lucas", "yweweler"},
        "greek_french": {"george", "nicolas"},
    }


def test_images_to_train_and_validate_are_four_fifths_of_each_domain() -> None:
    counts = Counter(zip(DOMAINS, PARTS, strict=True))
    assert counts == {
        (0, "train"): 424, (0, "val"): 58, (0, "test"): 120,
        (1, "train"): 422, (1, "val"): 57, (1, "test"): 120,
        (2, "train"): 420, (2, "val"): 56, (2, "test"): 120,
    }  # fmt: skip


def test_a_class_of_61_images_has_43_6_and_12_in_the_order_of_their_hashes() -> None:
    parts = image_parts([7] * 61, [0] * 61)
    order = sorted(range(61), key=lambda image: hashlib.sha256(f"avd0:img:{image}".encode()).hexdigest())
    assert [parts[image] for image in order] == ["train"] * 43 + ["val"] * 6 + ["test"] * 12


def test_a_recording_meets_an_image_of_its_digit_domain_and_part(pairs: list[tuple[Recording, int]]) -> None:
    for recording, image in pairs:
        assert LABELS[image] == recording.digit
        assert DOMAINS[image] == recording.domain
        assert PARTS[image] == recording_part(recording)


def test_every_image_is_used_in_one_part_of_one_domain_and_once_or_twice(pairs: list[tuple[Recording, int]]) -> None:
    places = defaultdict(set)
    for recording, image in pairs:
        places[image].add((recording.domain, recording_part(recording)))
    assert len(places) == 1797
    assert all(len(found) == 1 for found in places.values())
    uses = Counter(image for _, image in pairs)
    assert set(uses.values()) == {1, 2}


def test_the_pairing_is_the_same_on_every_platform(pairs: list[tuple[Recording, int]]) -> None:
    text = "".join(f"{recording.name},{recording.domain},{image},{PARTS[image]}\n" for recording, image in pairs)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "df36d5e6cc6ebe4d63b91b1c4986137751bfeeea785a21c20eeaf3b826e97abe"
    )


def test_the_first_domain_shows_images_as_they_are() -> None:
    images = np.random.default_rng(0).random((3, 8, 8))
    assert np.array_equal(styled(images, [0, 0, 0]), images)


def test_the_second_domain_shows_them_rotated_by_25_degrees() -> None:
    image = np.zeros((1, 8, 8))
    image[0, 3, 5] = 1.0
    # The point lies 1.5 to the right of the centre and 0.5 above it, and 25 degrees take it up and inwards. A pixel,
    # turned back, has (1 - |dx|)(1 - |dy|) of the point: that at (2, 5) comes to (1.993, 0.7255), so 0.5068 x 0.7745.
    expected = np.zeros((8, 8))
    cos, sin = np.cos(np.deg2rad(25)), np.sin(np.deg2rad(25))
    for row, column in np.ndindex(8, 8):
        right, up = column - 3.5, 3.5 - row
        back = right * cos + up * sin, up * cos - right * sin
        expected[row, column] = max(0, 1 - abs(back[0] - 1.5)) * max(0, 1 - abs(back[1] - 0.5))
    found = styled(image, [1])[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.unravel_index(found.argmax(), found.shape) == (2, 5)
    assert found[2, 5] == pytest.approx(0.3924, abs=1e-4)


def test_the_third_domain_shows_them_under_a_ramp_from_left_to_right() -> None:
    found = styled(np.full((1, 8, 8), 0.5), [2])[0]
    np.testing.assert_allclose(found, np.tile(0.3 + 0.4 * np.arange(8) / 7, (8, 1)))


def test_every_image_has_the_style_of_its_own_domain() -> None:
    images = np.random.default_rng(0).random((3, 8, 8))
    together = styled(images, [2, 0, 1])
    alone = [styled(images[number : number + 1], [domain])[0] for number, domain in enumerate((2, 0, 1))]
    assert np.array_equal(together, alone)


def test_archive_to_batches_through_mirror_fetch_and_prepare(
    spoken_domains: Spoken, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in spoken_domains.files:
        (spoken_domains.raw / path).unlink()
    monkeypatch.setenv("EQUIPOISE_MIRROR", str(spoken_domains.mirror))
    (found,) = fetch_named("av_digits_dg")
    assert str(found) == "v1.0.10.zip: 60 expected, 60 found, 0 broken, 2 unknown ignored"
    said: list[str] = []
    prepare("av_digits_dg", say=said.append)
    assert said == ["v1.0.10.zip: 60 expected, 60 found, 0 broken", "split by_index: train 24, val 12, test 24"]
    data = load("av_digits_dg")
    assert data.domains == ("usa", "german", "greek_french")
    parts = data.without("german")
    assert {name: len(part) for name, part in parts.items()} == {"train": 16, "val": 8, "test": 8, "sources": 16}
    assert parts["train"].domains is not None
    assert parts["train"].domains.bincount().tolist() == [8, 8]
    batch = next(parts["test"].batches(8))
    # A tone of 500 Hz lies in frequency bin 16 of 31.25 Hz each, one of 1,000 Hz in bin 32.
    loudest = batch.inputs["audio"][:, 0].mean(-1).argmax(-1)
    assert loudest.tolist() == [16 if label == 0 else 32 for label in batch.labels.tolist()]


@pytest.mark.usefixtures("spoken_domains")
def test_recordings_fetched_for_av_digits_are_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.download.Downloader.complete", None)
    (found,) = fetch_named("av_digits_dg")
    assert found.complete
    assert [folder.name for folder in (tmp_path / "data" / "raw").iterdir()] == ["av_digits"]


@pytest.mark.usefixtures("spoken_domains")
def test_stored_images_are_those_of_the_styles() -> None:
    prepared = prepare("av_digits_dg", say=lambda _: None)
    images, _ = handwritten_digits()
    found = prepared.array("image")
    assert found.shape == (1797, 1, 8, 8)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found[:, 0], styled(images / 16, DOMAINS), atol=5e-4)


def test_training_shifts_spectrograms_as_av_digits_does() -> None:
    inputs = {"audio": torch.rand(20, 1, 3, 64), "image": torch.rand(20, 1, 8, 8)}
    ours, theirs = (dataset.augment(inputs, torch.Generator().manual_seed(0)) for dataset in (AVDigitsDG(), AVDigits()))
    assert not torch.equal(ours["audio"], inputs["audio"])
    assert torch.equal(ours["audio"], theirs["audio"])
    assert ours["image"] is inputs["image"]


def test_preparing_depends_on_every_source_and_on_the_recordings_of_av_digits() -> None:
    pipeline = "datasets/av_digits_dg/dvc.yaml"
    stage = yaml.safe_load((SOURCE_ROOT / pipeline).read_text())["stages"]["prepare"]
    sources = {str(file.relative_to(SOURCE_ROOT)) for file in DATASETS.entry("av_digits_dg").source_files()}
    assert {*sources, "datasets/av_digits/fsdd_sha256.csv", "data/raw/av_digits"} == set(stage["deps"])
