from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark import fetchable
from benchmark.cli import main
from benchmark.dataset import Checksum, Manifest, Source
from benchmark.fetch import survey_sources
from tests.benchmark.toys import CONTENT, MEMBERS, PATIENCE, archive, archived, sums, write_manifest
from tests.http_server import Server


def lines(sources: tuple[Source, ...], raw: Path, mirror: Path | None = None) -> list[str]:
    """What is printed, without the free disk."""
    found = survey_sources("toy", sources, raw, mirror, patience=PATIENCE)
    *printed, free = found.lines("toy")
    assert free.endswith(f" are free in {raw}")
    return printed


def files(server: Server) -> tuple[Source, ...]:
    server.content |= {"/b": CONTENT, "/c": CONTENT}
    return (
        Source(file="a.bin", urls=(server.url + "/a",), checksum=sums(CONTENT)),
        Source(file="b.bin", urls=(server.url + "/b",), checksum=Checksum(sums(CONTENT).sha256)),
        Source(file="c.bin", urls=("http://127.0.0.1:1/c",), checksum=Checksum(sums(CONTENT).sha256)),
    )


def test_sizes_are_those_of_the_card_or_of_the_host_or_unknown_and_nothing_is_downloaded(
    server: Server, tmp_path: Path
) -> None:
    assert lines(files(server), tmp_path / "raw") == [
        "a.bin: 1 expected, 0 found, 0 broken; to download: 1 file, 1.0 MB",
        "b.bin: 1 expected, 0 found, 0 broken; to download: 1 file, 1.0 MB",
        "c.bin: 1 expected, 0 found, 0 broken; to download: 1 file of unknown size",
        "toy: to download: 3 files, 2.0 MB and 1 of unknown size",
    ]
    assert (server.heads, server.requests) == (["/b"], [])
    assert not (tmp_path / "raw").exists()


def test_what_is_there_begun_or_in_the_mirror_is_told_apart(server: Server, tmp_path: Path) -> None:
    raw, mirror = tmp_path / "raw", tmp_path / "mirror"
    raw.mkdir()
    (mirror / "toy").mkdir(parents=True)
    (raw / "a.bin").write_bytes(CONTENT)
    (raw / "b.bin.part").write_bytes(CONTENT[:300_000])
    (mirror / "toy" / "c.bin").write_bytes(CONTENT)
    assert lines(files(server), raw, mirror) == [
        "a.bin: 1 expected, 1 found, 0 broken",
        "b.bin: 1 expected, 0 found, 0 broken; to download: 1 file, 1.0 MB; 300.0 kB of it are here",
        "c.bin: 1 expected, 0 found, 0 broken; to copy from the mirror: 1 file, 1.0 MB",
        "toy: to download: 1 file, 1.0 MB",
    ]


def test_single_files_are_counted_and_broken_ones_are_among_them(server: Server, tmp_path: Path) -> None:
    members = {f"clips/{number}.wav": bytes(1000) for number in range(1500)}
    manifest = Manifest(write_manifest(tmp_path / "sums.csv", members), (server.url + "/{path}",))
    (tmp_path / "raw" / "clips").mkdir(parents=True)
    (tmp_path / "raw" / "clips" / "0.wav").write_bytes(bytes(1000))
    (tmp_path / "raw" / "clips" / "1.wav").write_bytes(b"other")
    assert lines((Source(file="clips", manifest=manifest),), tmp_path / "raw") == [
        "clips: 1500 expected, 2 found, 1 broken; to download: 1,499 files, 1.5 MB",
        "toy: to download: 1,499 files, 1.5 MB",
    ]
    assert (server.heads, server.requests) == ([], [])


def test_an_archive_that_was_brought_is_to_be_unpacked_and_one_that_was_not_is_to_be_brought(
    server: Server, tmp_path: Path
) -> None:
    (source,) = archived(server, tmp_path).card.sources
    raw = tmp_path / "raw"
    assert lines((source,), raw) == [
        f"toy.zip: 2 expected, 0 found, 0 broken; to be brought by hand: By post. Put it into {raw}.",
        "toy: to be brought by hand: toy.zip",
    ]
    raw.mkdir()
    (raw / "toy.zip").write_bytes(archive(MEMBERS))
    assert lines((source,), raw) == ["toy.zip: 2 expected, 0 found, 0 broken; to unpack: 1 file of unknown size"]


def test_a_folder_that_a_person_fills_is_said_how(tmp_path: Path) -> None:
    source = Source(file="clips", suffix=".mp4", obtain="Copy the clips.")
    assert lines((source,), tmp_path) == [
        f"clips: 0 found, without checksums; to be brought by hand: Copy the clips. Put it into {tmp_path}.",
        "toy: to be brought by hand: clips",
    ]
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.mp4").touch()
    assert lines((source,), tmp_path) == ["clips: 1 found, without checksums"]


def test_a_hub_that_redirects_to_its_storage_states_the_size_itself(server: Server, tmp_path: Path) -> None:
    server.redirects["/a"] = (f"{server.url}/storage", {"X-Linked-Size": "5000000000"})
    server.content["/storage"] = b"in pieces"
    (source,) = (replace(source, checksum=Checksum("")) for source in files(server)[:1])
    assert lines((source,), tmp_path)[-1] == "toy: to download: 1 file, 5.0 GB"


def test_the_command_says_what_it_would_do_and_that_the_disk_is_too_small(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fetchable._Fetchable("toy", files(server)[:1], tmp_path, "CC BY 4.0; its authors ask for a form")
    monkeypatch.setattr(fetchable, "_fetchable", lambda _name: found)
    usage = shutil.disk_usage(tmp_path)._replace(free=24_000)
    monkeypatch.setattr("benchmark.fetch_plan.shutil.disk_usage", lambda _folder: usage)
    assert main(["fetch", "toy", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Terms of toy: CC BY 4.0; its authors ask for a form",
        "a.bin: 1 expected, 0 found, 0 broken; to download: 1 file, 1.0 MB",
        "toy: to download: 1 file, 1.0 MB",
        f"24.0 kB are free in {tmp_path}",
        f"The disk is too small: 1.0 MB are needed in {tmp_path}, where 24.0 kB are free.",
    ]
    assert list(tmp_path.iterdir()) == []
    assert main(["fetch", "toy"]) == 1
    assert "Error: toy: 1.0 MB are needed in" in capsys.readouterr().err


def test_a_dataset_without_sources_needs_no_download(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "digits", "--dry-run"]) == 0
    assert capsys.readouterr().out == "digits needs no download.\n"


def test_a_fetch_that_stays_incomplete_reports_every_source_before_its_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fetchable._Fetchable("toy", files(server)[:2], tmp_path)
    monkeypatch.setattr(fetchable, "_fetchable", lambda _name: found)
    assert main(["fetch", "toy"]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["a.bin: 1 expected, 0 found, 0 broken", "b.bin: 1 expected, 1 found, 0 broken"]
    assert "Error: toy: a.bin could not be fetched (" in shown.err
