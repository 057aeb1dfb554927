"""No split has a sample, a recording or, where it says so, a person in two parts; those that leak are named here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pytest

from benchmark.dataset import PARTS
from benchmark.preparation import obtain
from benchmark.prepared import Prepared
from benchmark.registry import DATASETS
from datasets.av_digits import RECORDINGS
from datasets.av_digits.pairs import Recording
from datasets.av_digits_dg.pairs import recording_part
from datasets.cremad import CLIPS
from datasets.cremad.clips import actor, clean_parts, legacy_parts, shared_recordings
from datasets.hac.lists import Listed, domain_parts, origin
from datasets.kinetics_sounds.clips import ID
from datasets.ucf51.lists import PAPER_GROUPS, group, group_parts, shuffled_parts
from tests.datasets.archives import LOOKALIKES, archive_of
from tests.datasets.test_cremad import real_names as cremad_names
from tests.datasets.test_ucf51 import real_names as ucf51_names

Parts = tuple[Sequence[str], Sequence[str]]
"""Samples and the part of each, "" for none."""

COPIES = shared_recordings(CLIPS.files)
SPOKEN = {Path(path).stem: checksum.sha256 for path, checksum in RECORDINGS.files.items()}


def hac_video(sample: str) -> str:
    """Return the video that a clip was cut from: names that are none of YouTube's are given in several domains."""
    domain, _, name = sample.partition("/")
    return sample if origin(name) == name else f"{domain}/{origin(name)}"


RECORDING: Mapping[str, Callable[[str], str]] = {
    "digits": str,
    "digits_dg": str,
    "av_digits": lambda sample: SPOKEN.get(sample, sample),
    "av_digits_dg": lambda sample: SPOKEN.get(sample, sample),
    "cremad": lambda sample: min(sample, COPIES.get(sample, sample)),
    "kinetics_sounds": lambda sample: sample[:ID],
    "ucf51": lambda sample: sample.rpartition("_")[0],  # the class and group of a clip
    "hac": hac_video,
    "epic_kitchens": lambda sample: sample.partition("-")[0],
}
"""What a sample is or was cut from, from its id, for every dataset whose splits are its own."""

PERSON: Mapping[tuple[str, str], Callable[[str], str]] = {("cremad", "clean"): actor}
"""Splits that keep people apart, and who is in a sample."""

LEAKS: Mapping[tuple[str, str], str] = {
    ("cremad", "legacy"): "the published lists take no notice of actors, nor of recordings that are there twice",
    ("ucf51", "random80"): "it is there to show what near duplicates of test clips in training are worth",
    ("hac", "legacy"): "the published lists cut through four videos",
}
"""Splits that have a recording in two parts, and why."""


def owner(name: str) -> str:
    """Return the dataset whose splits a dataset has: a variant's may be those of the one whose files it reads."""
    card = DATASETS.load(name).card
    return card.raw_name if card.splits == DATASETS.load(card.raw_name).card.splits else name


def shared(found: Parts, of: Callable[[str], str]) -> set[str]:
    """Return what is in several parts."""
    where = defaultdict(set)
    for sample, part in zip(*found, strict=True):
        if part:
            where[of(sample)].add(part)
    return {key for key, parts in where.items() if len(parts) > 1}


def refuse_overlap(name: str, split: str, found: Parts) -> None:
    if (name, split) not in LEAKS:
        assert shared(found, RECORDING[name]) == set()
    if (name, split) in PERSON:
        assert shared(found, PERSON[name, split]) == set()


def refuse_overlaps(prepared: Prepared) -> None:
    index = prepared.index
    for split, parts in index.parts.items():
        refuse_overlap(prepared.meta.dataset, split, (index.ids, parts.tolist()))
        for rows in index.rows.values():
            for first, second in combinations(PARTS, 2):
                assert not set(rows[parts == first].tolist()) & set(rows[parts == second].tolist())


def test_every_dataset_says_what_a_recording_is_and_every_clean_split_who_a_person_is() -> None:
    assert {owner(name) for name in DATASETS.names()} == set(RECORDING)
    splits = {(name, split) for name in RECORDING for split in DATASETS.load(name).card.splits}
    assert LEAKS.keys() <= splits
    assert PERSON.keys() == {(name, split) for name, split in splits if split == "clean"}


@pytest.fixture(scope="module", params=sorted(LOOKALIKES))
def lookalike(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """Give the look-alike of every dataset of clips, prepared as its users do."""
    with archive_of(DATASETS.load(request.param), tmp_path_factory.mktemp(request.param)) as archive:
        yield archive.prepared


def test_no_part_of_a_look_alike_has_what_another_has(lookalike: Prepared) -> None:
    refuse_overlaps(lookalike)


def test_the_census_of_a_look_alike_counts_what_was_expected_and_found(lookalike: Prepared) -> None:
    for split in lookalike.meta.splits.values():
        assert set(split.census) == set(PARTS)
        for part, found in split.census.items():
            expected, there = list(found.values())[:2]
            assert expected >= there > 0
            assert found.get("used", expected) == split.counts[part]
            assert found.get("with faults", 0) <= there


@pytest.mark.parametrize("name", ["digits", "digits_dg"])
def test_no_part_of_the_bundled_images_has_what_another_has(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    refuse_overlaps(obtain(name))


def spoken(part: Callable[[Recording], str]) -> Parts:
    recordings = [Recording.from_path(path) for path in RECORDINGS.files]
    return [recording.name for recording in recordings], [part(recording) for recording in recordings]


def grouped(test: frozenset[int]) -> Parts:
    names = ucf51_names()
    return names, group_parts(names, {name for name in names if group(name) in test})


REAL: Mapping[tuple[str, str], Callable[[], Parts]] = {
    ("av_digits", "fsdd_official"): lambda: spoken(lambda recording: recording.part),
    ("av_digits_dg", "by_index"): lambda: spoken(recording_part),
    ("cremad", "clean"): lambda: (cremad_names(), clean_parts(cremad_names())),
    ("ucf51", "official1"): lambda: grouped(frozenset(range(1, 8))),
    ("ucf51", "paper-size"): lambda: grouped(PAPER_GROUPS),
}
"""Splits of all real samples, as far as their names or numbers are known without a download."""


@pytest.mark.parametrize(("name", "split"), REAL)
def test_no_part_of_the_real_samples_has_what_another_has(name: str, split: str) -> None:
    found = REAL[name, split]()
    assert set(found[1]) == set(PARTS)
    refuse_overlap(name, split, found)


def published_copies() -> Parts:
    """Return where the published lists of CREMA-D have the recordings that are there twice."""
    names = sorted(COPIES)
    val, test = {"1006_TIE_HAP_XX", "1017_IWW_ANG_XX"}, {"1013_WSI_SAD_XX"}
    return names, legacy_parts(names, val=val, test=test)


def published_excerpts() -> Parts:
    """Return a clip each of the training and the test list of HAC from every video that both cut from."""
    pairs = (
        ("animal", "-hAno2-MdLY-006", "-hAno2-MdLY-001"),
        ("animal", "2Syd_BUbl5A-002", "2Syd_BUbl5A-001"),
        ("animal", "JYFIV5NV7m4-005", "JYFIV5NV7m4-001"),
        ("human", "59ss-LuAmJE_000038_000048", "59ss-LuAmJE_000049_000059"),
    )
    parts = [(domain, domain_parts(domain, {train: 0}, {test: 0})) for domain, train, test in pairs]
    listed = [Listed(domain, name, 0, part) for domain, own in parts for name, part in own.items()]
    return [clip.id for clip in listed], [clip.legacy for clip in listed]


LEAKING: Mapping[tuple[str, str], tuple[Callable[[], Parts], int]] = {
    ("cremad", "legacy"): (published_copies, 3),
    ("ucf51", "random80"): (lambda: (ucf51_names(), shuffled_parts(ucf51_names())), 25),
    ("hac", "legacy"): (published_excerpts, 4),
}


@pytest.mark.parametrize(("name", "split"), LEAKS)
def test_a_split_that_is_said_to_leak_does(name: str, split: str) -> None:
    found, recordings = LEAKING[name, split]
    assert len(shared(found(), RECORDING[name])) == recordings
