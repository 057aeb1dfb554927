from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from benchmark.data import load
from benchmark.dataset import PARTS
from benchmark.errors import DataError
from benchmark.fetch import fetch
from benchmark.preparation import prepare
from datasets.av_digits import RECORDINGS, AVDigits
from datasets.av_digits.degradation import without_leading_components
from datasets.av_digits.pairs import DOMAINS, Recording, paired_images
from datasets.av_digits.spectrogram import log_spectrograms, read_waves
from datasets.digits.images import handwritten_digits, image_parts

if TYPE_CHECKING:
    from tests.datasets.conftest import Spoken


def real_recordings() -> list[Recording]:
    return [Recording.from_path(path) for path in sorted(RECORDINGS.files)]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Recording, int, str]]:
    """Recording, image and the image's part, for the 3,000 names of the real manifest."""
    _, labels = handwritten_digits()
    parts = image_parts(labels)
    recordings = real_recordings()
    images = paired_images(recordings, labels.tolist(), parts)
    return [(recording, image, parts[image]) for recording, image in zip(recordings, images, strict=True)]


def test_the_real_manifest_names_ten_digits_of_six_speakers_fifty_times() -> None:
    recordings = real_recordings()
    assert len(set(recordings)) == 3000
    assert Counter((r.digit, r.speaker) for r in recordings).most_common()[-1][1] == 50
    assert sum(checksum.size or 0 for checksum in RECORDINGS.files.values()) == 21_128_848


def test_parts_have_2400_300_300_recordings_and_1252_181_300_images(
    pairs: list[tuple[Recording, int, str]],
) -> None:
    assert Counter(recording.part for recording, _, _ in pairs) == {"train": 2400, "val": 300, "test": 300}
    images = {part: {image for recording, image, _ in pairs if recording.part == part} for part in PARTS}
    assert {part: len(used) for part, used in images.items()} == {"train": 1252, "val": 181, "test": 300}


def test_a_recording_meets_an_image_of_its_own_digit_and_part(
    pairs: list[tuple[Recording, int, str]],
) -> None:
    _, labels = handwritten_digits()
    assert all(labels[image] == recording.digit for recording, image, _ in pairs)
    assert all(part == recording.part for recording, _, part in pairs)


def test_the_pairing_is_the_same_on_every_platform(pairs: list[tuple[Recording, int, str]]) -> None:
    text = "".join(f"{recording.name},{image},{recording.part}\n" for recording, image, _ in pairs)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "721a36a3a83074c3a048802a8b4d0fad6a127466f8c9c8463a6b58e8d624f1d3"
    )


def test_every_domain_has_two_speakers_and_a_thousand_recordings() -> None:
    counts = Counter(recording.domain for recording in real_recordings())
    assert counts == {0: 1000, 1: 1000, 2: 1000}
    assert AVDigits.card.domains[Recording(0, "lucas", 0).domain] == "german"
    assert sorted(speaker for speakers in DOMAINS.values() for speaker in speakers) == sorted(
        {recording.speaker for recording in real_recordings()}
    )


def test_spectrogram_is_the_log_magnitude_of_its_definition() -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, 8000).astype(np.float32)
    padded = np.pad(wave, 128).astype(np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    frames = np.stack([padded[125 * t : 125 * t + 256] * window for t in range(64)])
    expected = np.log(np.abs(np.fft.rfft(frames)) + 1e-4).T
    found = log_spectrograms(wave[None])
    assert found.shape == (1, 1, 129, 64)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found[0, 0], expected, atol=5e-3)


def test_spectrograms_do_not_depend_on_the_block_they_are_computed_in() -> None:
    waves = np.random.default_rng(0).uniform(-1, 1, (5, 8000)).astype(np.float32)
    assert np.array_equal(log_spectrograms(waves, block=2), log_spectrograms(waves))


def test_recordings_are_padded_and_cut_at_the_end_to_one_second(spoken: Spoken) -> None:
    short, long = (spoken.raw / f"recordings/{name}.wav" for name in ("0_jackson_0", "1_nicolas_11"))
    waves = read_waves([short, long])
    assert waves.shape == (2, 8000)
    assert np.abs(waves[0, :1600]).max() == pytest.approx(12_000 / 32_768, rel=1e-3)
    assert not waves[0, 1600:].any()
    assert waves[1, -80:].any()


def test_a_recording_at_another_rate_is_refused(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "fast.wav", np.zeros(100), 16_000, subtype="PCM_16")
    with pytest.raises(DataError, match=r"fast\.wav has 16000 Hz"):
        read_waves([tmp_path / "fast.wav"])


def test_keeping_a_tenth_of_the_variance_removes_twenty_components() -> None:
    images, labels = handwritten_digits()
    train = np.array(image_parts(labels)) == "train"
    degraded, zeroed = without_leading_components(images / 16, train, keep=0.10)
    assert zeroed == 20
    share = degraded[train].var(axis=0).sum() / (images[train] / 16).var(axis=0).sum()
    assert 0.10 <= share < 0.11


def test_components_are_fitted_on_training_images_alone() -> None:
    images = np.random.default_rng(0).normal(size=(60, 4, 4))
    train = np.arange(60) < 40
    before, _ = without_leading_components(images, train, keep=0.5)
    images[~train] *= 100
    after, _ = without_leading_components(images, train, keep=0.5)
    assert np.array_equal(before[train], after[train])


def test_archive_to_batches_through_mirror_fetch_and_prepare(spoken: Spoken, tmp_path: Path) -> None:
    destination = tmp_path / "data" / "raw" / "av_digits"
    for path in spoken.files:
        (destination / path).unlink()
    (found,) = fetch(AVDigits, destination, spoken.mirror)
    assert str(found) == "v1.0.10.zip: 144 expected, 144 found, 0 broken, 2 unknown ignored"
    said: list[str] = []
    prepare("av_digits", say=said.append)
    assert said == [
        "v1.0.10.zip: 144 expected, 144 found, 0 broken",
        "images: the 20 leading principal components of 64 removed",
        "split fsdd_official: train 24, val 60, test 60",
    ]
    data = load("av_digits")
    assert data.domains == ("usa", "german", "greek_french")
    batch = next(data.parts["test"].batches(60))
    assert {name: tuple(values.shape) for name, values in batch.inputs.items()} == {
        "audio": (60, 1, 129, 64),
        "image": (60, 1, 8, 8),
    }
    # A tone of 500 Hz lies in frequency bin 16 of 31.25 Hz each, one of 1,000 Hz in bin 32.
    loudest = batch.inputs["audio"][:, 0].mean(-1).argmax(-1)
    assert loudest.tolist() == [16 if label == 0 else 32 for label in batch.labels.tolist()]
    assert batch.domains is not None
    assert batch.domains.bincount().tolist() == [20, 20, 20]


def test_prepared_arrays_hold_every_recording_and_image_once(spoken: Spoken) -> None:
    prepared = prepare("av_digits", say=lambda _: None)
    assert prepared.array("audio").shape == (len(spoken.files), 1, 129, 64)
    assert prepared.array("image").shape == (1797, 1, 8, 8)
    assert {prepared.array(name).dtype for name in ("audio", "image")} == {np.dtype(np.float16)}


def test_a_recording_with_other_bytes_is_refused_by_name_and_counted(spoken: Spoken) -> None:
    file = spoken.raw / "recordings" / "1_theo_3.wav"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    said: list[str] = []
    with pytest.raises(DataError, match=r"1_theo_3\.wav: sha256 .* instead of .*equipoise fetch av_digits"):
        prepare("av_digits", say=said.append)
    assert said == ["v1.0.10.zip: 144 expected, 144 found, 1 broken"]


def test_missing_recordings_are_counted_and_ask_for_a_fetch(spoken: Spoken) -> None:
    for index in range(5):
        (spoken.raw / "recordings" / f"0_lucas_{index}.wav").unlink()
    with pytest.raises(DataError, match=r"144 expected, 139 found.*is missing; 2 more.*equipoise fetch av_digits"):
        prepare("av_digits", say=lambda _: None)


@pytest.mark.usefixtures("spoken")
def test_an_index_in_which_an_image_is_in_two_parts_is_refused() -> None:
    prepared = prepare("av_digits", say=lambda _: None)
    file = prepared.folder / "index.csv"
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    train = next(row for row in rows if row["fsdd_official"] == "train")
    test = next(row for row in rows if row["fsdd_official"] == "test" and row["label"] == train["label"])
    test["image_row"] = train["image_row"]
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    meta = prepared.folder / "meta.json"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    meta.write_text(meta.read_text().replace(prepared.meta.index_sha256, digest))
    with pytest.raises(DataError, match=f"image row {train['image_row']} is in both train and test"):
        load("av_digits")


def test_augmentation_shifts_frames_around_the_end_and_leaves_images_alone() -> None:
    audio = torch.arange(64.0).expand(200, 1, 3, 64)
    image = torch.rand(200, 1, 8, 8)
    shifted = AVDigits().augment({"audio": audio, "image": image}, torch.Generator().manual_seed(0))
    assert shifted["image"] is image
    steps = (-shifted["audio"][:, 0, 0, 0]) % 64
    shifts = torch.where(steps > 32, steps - 64, steps)
    assert sorted(shifts.unique().tolist()) == list(range(-10, 11))
    for sample, shift in zip(shifted["audio"], shifts.int().tolist(), strict=True):
        assert torch.equal(sample, audio[0].roll(shift, -1))


def test_augmentation_repeats_with_its_generator() -> None:
    inputs = {"audio": torch.rand(20, 1, 3, 64)}
    first, again = (AVDigits().augment(inputs, torch.Generator().manual_seed(3))["audio"] for _ in range(2))
    assert torch.equal(first, again)
