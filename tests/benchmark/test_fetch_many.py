from __future__ import annotations

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.dataset import Checksum, Dataset, Source
from benchmark.download import Patience
from benchmark.errors import DataError
from benchmark.fetch import fetch
from benchmark.fetch_outcome import IncompleteError
from benchmark.fetcher import AT_ONCE, LARGE_AT_ONCE
from tests.benchmark.toys import CONTENT, MEMBERS, PATIENCE, archive, archived, dataset, single_files, sums
from tests.http_server import Server


def clips(count: int) -> dict[str, bytes]:
    return {f"clips/{number:04}.wav": f"clip {number}".encode() * (1 + number % 50) for number in range(count)}


def there(raw: Path) -> dict[str, bytes]:
    return {str(file.relative_to(raw)): file.read_bytes() for file in raw.rglob("*.wav")}


def many_sources(server: Server, count: int) -> type[Dataset]:
    contents = {f"{number}.bin": bytes([number]) * 1000 for number in range(count)}
    server.content |= {f"/{name}": content for name, content in contents.items()}
    return dataset(
        *(Source(file=n, urls=(f"{server.url}/{n}",), checksum=sums(content)) for n, content in contents.items())
    )


def test_sources_come_several_at_a_time(server: Server, tmp_path: Path) -> None:
    server.delay = 0.05
    assert all(found.complete for found in fetch(many_sources(server, 20), tmp_path, patience=PATIENCE))
    assert 1 < server.most_at_once <= AT_ONCE


def test_single_files_come_several_at_a_time(server: Server, tmp_path: Path) -> None:
    server.delay = 0.05
    fetch(single_files(server, tmp_path, clips(20)), tmp_path / "raw", patience=PATIENCE)
    assert 1 < server.most_at_once <= AT_ONCE


def test_large_files_come_a_few_at_a_time(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.fetcher.LARGE", 1000)
    server.delay = 0.05
    fetch(many_sources(server, 8), tmp_path, patience=PATIENCE)
    assert 1 < server.most_at_once <= LARGE_AT_ONCE


def test_thousands_of_files_arrive_from_a_server_that_fails_at_random(server: Server, tmp_path: Path) -> None:
    members, draw = clips(2000), random.Random(0)
    for path in members:
        troubles = draw.choices(["503", "cut", "429", "no range"], k=draw.randrange(3))
        server.answers[f"/single/{path}"] = [*troubles, "whole"] if draw.random() < 0.2 else ["whole"]
    patience = replace(PATIENCE, stall=5.0)
    (found,) = fetch(single_files(server, tmp_path, members), tmp_path / "raw", patience=patience)
    assert str(found) == "clips: 2000 expected, 2000 found, 0 broken"
    assert there(tmp_path / "raw") == members
    assert len(server.requests) > 2000
    assert not list((tmp_path / "raw").rglob("*.part"))


def test_a_file_that_cannot_be_had_keeps_no_other_from_coming_and_is_named(server: Server, tmp_path: Path) -> None:
    members = clips(40)
    toy = single_files(server, tmp_path, members)
    for path in list(members)[5:10]:
        server.answers[f"/single/{path}"] = ["404"]
    with pytest.raises(
        IncompleteError,
        match=r"^toy: clips could not be fetched \(clips: 40 expected, 35 found, 0 broken; http\S*/0005\.wav: 404 Not "
        r"Found; http\S*/0006\.wav: 404 Not Found; http\S*/0007\.wav: 404 Not Found; 2 more, the last "
        r"http\S*/0009\.wav: 404 Not Found\)\. Check the connection, ",
    ) as caught:
        fetch(toy, tmp_path / "raw", patience=PATIENCE)
    assert "\n" not in str(caught.value)
    assert len(there(tmp_path / "raw")) == 35
    assert [str(found) for found in caught.value.found] == ["clips: 40 expected, 35 found, 0 broken"]
    server.answers.clear()
    server.requests.clear()
    fetch(toy, tmp_path / "raw", patience=PATIENCE)
    assert there(tmp_path / "raw") == members
    assert len(server.requests) == 5


def test_all_sources_that_are_missing_are_named_in_one_error(server: Server, tmp_path: Path) -> None:
    known = many_sources(server, 1).card.sources
    gone = [
        Source(file=f"gone{number}.bin", urls=(f"{server.url}/gone{number}",), checksum=sums(CONTENT))
        for number in range(5)
    ]
    by_post = Source(file="form.tar", checksum=sums(CONTENT), obtain="Sign the form.")
    with pytest.raises(IncompleteError) as caught:
        fetch(dataset(by_post, *gone, *known), tmp_path, patience=PATIENCE)
    names = [f"gone{n}.bin could not be fetched ({server.url}/gone{n}: 404 Not Found)" for n in range(3)]
    assert str(caught.value) == (
        f"toy: {'; '.join(names)}; 2 more sources. Check the connection, or put them into {tmp_path} or, as "
        "toy/<file>, into the folder named by EQUIPOISE_MIRROR. form.tar has to be brought by hand (form.tar is not "
        f"there). Sign the form. Put it into {tmp_path} and run `equipoise fetch toy` again; finished files are kept."
    )
    assert [found.complete for found in caught.value.found] == [False] * 6 + [True]
    assert (tmp_path / "0.bin").is_file()


def test_what_an_archive_lacks_does_not_keep_the_other_sources_from_coming(server: Server, tmp_path: Path) -> None:
    half = archive({"clips/one.wav": MEMBERS["clips/one.wav"]})
    broken = archived(server, tmp_path, half).card.sources
    with pytest.raises(DataError, match=r"toy\.zip could not be fetched \(.*clips/two\.wav is missing\)\)"):
        fetch(dataset(*broken, *many_sources(server, 3).card.sources), tmp_path / "raw", patience=PATIENCE)
    assert sorted(file.name for file in (tmp_path / "raw").glob("*.bin")) == ["0.bin", "1.bin", "2.bin"]
    assert list(there(tmp_path / "raw")) == ["clips/one.wav"]


def test_a_host_that_lets_every_file_down_is_soon_not_asked_any_more(server: Server, tmp_path: Path) -> None:
    members = clips(1000)
    server.answers = {f"/single/{path}": ["503"] for path in members}
    with pytest.raises(DataError, match=r"1000 expected, 0 found") as caught:
        fetch(single_files(server, tmp_path, members), tmp_path / "raw", patience=PATIENCE)
    assert "is not asked any more: 3 files in a row were given up, the last one for 503" in str(caught.value)
    assert "997 more" in str(caught.value)
    assert len(server.requests) <= (PATIENCE.files + AT_ONCE) * PATIENCE.attempts


def test_a_dead_network_ends_thousands_of_files_quickly(server: Server, tmp_path: Path) -> None:
    toy = single_files(server, tmp_path, clips(2000))
    (source,) = toy.card.sources
    assert source.manifest is not None
    dead = replace(source, manifest=replace(source.manifest, urls=("http://127.0.0.1:1/{path}",)))
    started = time.monotonic()
    with pytest.raises(DataError, match=r"no connection \(") as caught:
        fetch(dataset(dead), tmp_path / "raw", patience=Patience(attempts=3, wait=0.2))
    assert time.monotonic() - started < 10
    assert "127.0.0.1:1 is not asked any more: 3 files in a row were given up" in str(caught.value)


def test_a_host_that_only_some_files_are_given_up_at_is_asked_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.fetcher.AT_ONCE", 1)
    members = clips(30)
    bad = [path for number, path in enumerate(members) if number % 3]
    server.answers = {f"/single/{path}": ["503"] for path in bad}
    with pytest.raises(DataError, match="30 expected, 10 found"):
        fetch(single_files(server, tmp_path, members), tmp_path / "raw", patience=PATIENCE)
    assert len(server.requests) == 10 + len(bad) * PATIENCE.attempts


def test_a_full_disk_ends_the_fetch_and_keeps_what_is_finished(server: Server, tmp_path: Path) -> None:
    members = clips(200)
    (tmp_path / "raw" / "clips").mkdir(parents=True)
    (tmp_path / "raw" / "clips" / "0100.wav.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"disk is full while writing .*0100\.wav\.part\. .*finished files are kept"):
        fetch(single_files(server, tmp_path, members), tmp_path / "raw", patience=PATIENCE)
    kept = there(tmp_path / "raw")
    assert 80 < len(kept) < 130
    assert kept.items() <= members.items()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_asked_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2500)
    monkeypatch.setattr("benchmark.fetch_plan.shutil.disk_usage", lambda _folder: usage)
    toy = many_sources(server, 3)
    with pytest.raises(
        DataError,
        match=r"^toy: 3\.0 kB are needed in \S*, where 2\.5 kB are free\. Free some space and run `equipoise fetch ",
    ):
        fetch(toy, tmp_path, patience=PATIENCE)
    assert server.requests == []
    (tmp_path / "1.bin.part").write_bytes(b"\1" * 600)
    fetch(toy, tmp_path, patience=PATIENCE)
    assert (tmp_path / "1.bin").read_bytes() == bytes([1]) * 1000


def test_a_size_that_no_card_states_is_asked_for_before_the_disk_is_judged(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr("benchmark.fetch_plan.shutil.disk_usage", lambda _folder: usage)
    server.content["/a"] = CONTENT
    toy = dataset(Source(file="toy.bin", urls=(server.url + "/a",), checksum=Checksum(sums(CONTENT).sha256)))
    with pytest.raises(DataError, match=r"^toy: 1\.0 MB are needed in "):
        fetch(toy, tmp_path, patience=PATIENCE)
    assert (server.heads, server.requests) == (["/a"], [])
