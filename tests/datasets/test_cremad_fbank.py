from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import yaml
from torchaudio.compliance.kaldi import fbank

from benchmark.conformance_dataset import check_dataset
from benchmark.conformance_trial import Outcome
from benchmark.paths import SOURCE_ROOT
from benchmark.preparation import prepare
from benchmark.registry import DATASETS
from datasets._clips.sound import read_wave
from datasets.cremad import CREMAD
from datasets.cremad_fbank import CREMADFilterBank
from tests.datasets.archives import Archive, archive_of

NAME = "1002_DFA_SAD_XX"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with archive_of(CREMADFilterBank, tmp_path_factory.mktemp("cremad_fbank")) as found:
        yield found


def test_it_is_cremad_but_for_the_sound() -> None:
    own, other = CREMADFilterBank.card, CREMAD.card
    assert own.raw_name == other.name
    for field in ("sources", "classes", "splits", "default_split", "licence", "citation"):
        assert getattr(own, field) == getattr(other, field)
    assert {m for m in own.shapes if own.shapes[m] != other.shapes[m]} == {"audio"}


def test_filter_banks_are_kaldis_of_the_whole_recording_and_zero_behind_it(archive: Archive) -> None:
    sound = read_wave(archive.raw / f"AudioWAV/{NAME}.wav", 16_000)
    wave = torch.from_numpy(sound.samples - sound.samples.mean())[None]
    wanted = fbank(wave, num_mel_bins=128, window_type="hanning", htk_compat=True, use_energy=False, dither=0.0)
    found = archive.row("audio", NAME)[0]
    assert found.shape == (1024, 128)
    assert np.abs(found[: len(wanted)] - wanted.numpy()).max() < 0.01
    assert not found[len(wanted) :].any()


def test_frames_samples_and_splits_are_those_of_cremad(archive: Archive) -> None:
    other = prepare("cremad", say=lambda _: None)
    assert np.array_equal(other.array("video"), archive.prepared.array("video"))
    assert other.index.ids == archive.prepared.index.ids
    for split, parts in other.index.parts.items():
        assert np.array_equal(parts, archive.prepared.index.parts[split])
    assert other.meta.source_digest != archive.prepared.meta.source_digest


def test_preparing_depends_on_every_source_of_the_dataset() -> None:
    stages = yaml.safe_load((SOURCE_ROOT / "datasets/cremad_fbank/dvc.yaml").read_text())["stages"]
    sources = {str(file.relative_to(SOURCE_ROOT)) for file in DATASETS.entry("cremad_fbank").source_files()}
    assert set(stages["prepare"]["deps"]) == {*sources, "data/raw/cremad"}


@pytest.mark.usefixtures("archive")
def test_the_prepared_look_alike_conforms() -> None:
    reasons = [record.reason for record in check_dataset("cremad_fbank") if record.outcome is not Outcome.PASSED]
    assert reasons == []
