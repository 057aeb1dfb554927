from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.dataset import Checksum, Source, files_below
from benchmark.errors import DataError, UsageError
from benchmark.fetch import fetch
from tests.benchmark.toys import CONTENT, PATIENCE, dataset, one_file, sums
from tests.http_server import Server


def test_a_verified_file_gets_its_name_and_nothing_else_is_left(server: Server, tmp_path: Path) -> None:
    (found,) = fetch(one_file(server, "/a"), tmp_path / "raw", patience=PATIENCE)
    assert found.complete
    assert (tmp_path / "raw" / "toy.bin").read_bytes() == CONTENT
    assert not (tmp_path / "raw" / "toy.bin.part").exists()


def test_a_finished_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    toy = one_file(server, "/a")
    fetch(toy, tmp_path, patience=PATIENCE)
    fetch(toy, tmp_path, patience=PATIENCE)
    assert len(server.requests) == 1


def test_a_dataset_without_sources_asks_for_nothing(tmp_path: Path) -> None:
    assert fetch(dataset(), tmp_path / "raw") == []
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(("answer", "reason"), [("404", "404 Not Found"), ("wrong", "6 bytes instead of 1024000")])
def test_a_url_that_fails_for_good_is_followed_by_the_next(
    server: Server, tmp_path: Path, answer: str, reason: str
) -> None:
    toy = one_file(server, "/a", "/b")
    server.answers["/a"] = [answer]
    fetch(toy, tmp_path / "1", patience=PATIENCE)
    assert (tmp_path / "1" / "toy.bin").read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/a", "/b"]
    server.answers["/b"] = [answer]
    with pytest.raises(
        DataError, match=f"toy: toy.bin could not be fetched .*/a: {reason}.*/b: {reason}.*equipoise fetch toy"
    ):
        fetch(toy, tmp_path / "2", patience=PATIENCE)
    assert not (tmp_path / "2" / "toy.bin").exists()


def test_no_network_is_one_sentence_with_a_way_out(tmp_path: Path) -> None:
    toy = dataset(Source(file="toy.bin", urls=("http://127.0.0.1:1/a",), checksum=sums(CONTENT)))
    with pytest.raises(
        DataError, match=r"no connection \(.*\)\. Check the connection, or put .* EQUIPOISE_MIRROR"
    ) as caught:
        fetch(toy, tmp_path, patience=PATIENCE)
    assert "\n" not in str(caught.value)


def test_files_finished_before_a_failure_are_kept(server: Server, tmp_path: Path) -> None:
    server.content["/a"] = CONTENT
    toy = dataset(
        Source(file="one.bin", urls=(server.url + "/a",), checksum=sums(CONTENT)),
        Source(file="two.bin", urls=(server.url + "/gone",), checksum=sums(b"two")),
    )
    with pytest.raises(DataError, match=r"two\.bin could not be fetched"):
        fetch(toy, tmp_path, patience=PATIENCE)
    assert (tmp_path / "one.bin").read_bytes() == CONTENT


def test_the_mirror_is_looked_at_before_any_url(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mirror" / "toy").mkdir(parents=True)
    (tmp_path / "mirror" / "toy" / "toy.bin").write_bytes(CONTENT)
    monkeypatch.setenv("EQUIPOISE_MIRROR", str(tmp_path / "mirror"))
    fetch(one_file(server, "/a"), tmp_path / "raw", patience=PATIENCE)
    assert server.requests == []
    assert (tmp_path / "raw" / "toy.bin").read_bytes() == CONTENT


def test_a_broken_mirror_copy_is_passed_over_and_named_when_nothing_else_helps(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "toy").mkdir(parents=True)
    (tmp_path / "mirror" / "toy" / "toy.bin").write_bytes(b"short")
    toy = one_file(server, "/a")
    fetch(toy, tmp_path / "raw", tmp_path / "mirror", patience=PATIENCE)
    assert (tmp_path / "raw" / "toy.bin").read_bytes() == CONTENT
    server.answers["/a"] = ["404"]
    with pytest.raises(DataError, match=r"mirror/toy/toy\.bin: 5 bytes instead of 1024000; .*404 Not Found"):
        fetch(toy, tmp_path / "again", tmp_path / "mirror", patience=PATIENCE)


def test_a_mirror_that_is_no_folder_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"EQUIPOISE_MIRROR is '.*nowhere', which is no folder"):
        fetch(one_file(server, "/a"), tmp_path, patience=PATIENCE)


@pytest.mark.parametrize("digits", [8, 0])
def test_a_checksum_published_in_part_is_completed_by_the_first_copy(
    server: Server, tmp_path: Path, digits: int
) -> None:
    server.content["/a"] = CONTENT
    part = Checksum(sums(CONTENT).sha256[:digits])
    toy = dataset(Source(file="toy.bin", urls=(server.url + "/a",), checksum=part))
    assert fetch(toy, tmp_path, patience=PATIENCE)[0].complete
    assert (tmp_path / "toy.bin.sha256").read_text() == f"{sums(CONTENT).sha256}\n"
    (tmp_path / "toy.bin").write_bytes(b"other")
    assert not toy.card.sources[0].check(tmp_path).complete
    assert fetch(toy, tmp_path, patience=PATIENCE)[0].complete
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT


def test_a_file_that_lies_there_is_remembered_by_a_fetch(tmp_path: Path) -> None:
    (tmp_path / "toy.bin").write_bytes(CONTENT)
    toy = dataset(Source(file="toy.bin", urls=("http://127.0.0.1:1/a",), checksum=Checksum("")))
    assert fetch(toy, tmp_path, patience=PATIENCE)[0].complete
    (tmp_path / "toy.bin").write_bytes(b"other")
    with pytest.raises(DataError, match=r"toy\.bin: sha256 .* instead of "):
        fetch(toy, tmp_path, patience=PATIENCE)


def test_bytes_that_contradict_the_published_part_of_a_checksum_are_refused(server: Server, tmp_path: Path) -> None:
    server.content["/a"] = CONTENT
    toy = dataset(Source(file="toy.bin", urls=(server.url + "/a",), checksum=Checksum("01234567")))
    with pytest.raises(DataError, match=r"/a: sha256 .* instead of 01234567"):
        fetch(toy, tmp_path, patience=PATIENCE)
    assert not (tmp_path / "toy.bin.sha256").exists()


def test_a_source_that_may_not_be_downloaded_says_where_to_get_it_and_is_checked(tmp_path: Path) -> None:
    toy = dataset(Source(file="toy.bin", checksum=sums(CONTENT), obtain="Sign the form at example.org."))
    with pytest.raises(DataError, match=r"brought by hand \(toy\.bin is not there\)\. Sign the form .* Put it into"):
        fetch(toy, tmp_path)
    (tmp_path / "toy.bin").write_bytes(b"other")
    with pytest.raises(DataError, match=r"by hand \(.*toy\.bin: 5 bytes instead of 1024000\)"):
        fetch(toy, tmp_path)
    (tmp_path / "toy.bin").write_bytes(CONTENT)
    assert fetch(toy, tmp_path)[0].complete


def test_a_folder_that_a_person_fills_is_there_with_its_first_file_in_any_layout(tmp_path: Path) -> None:
    toy = dataset(Source(file="clips", suffix=".mp4", obtain="Copy the clips of Toy."))
    (tmp_path / "raw" / "clips").mkdir(parents=True)
    (tmp_path / "raw" / "clips" / "list.txt").touch()
    with pytest.raises(
        DataError,
        match=r"toy: clips has to be brought by hand \(clips/\*\*/\*\.mp4 is missing\)\. Copy the clips of Toy\. "
        r"Put it into .*raw and run `equipoise fetch toy` again",
    ):
        fetch(toy, tmp_path / "raw")
    (tmp_path / "elsewhere" / "train").mkdir(parents=True)
    (tmp_path / "elsewhere" / "train" / "one.mp4").touch()
    (tmp_path / "raw" / "clips" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw" / "clips" / "two.mp4").touch()
    (found,) = fetch(toy, tmp_path / "raw")
    assert found.complete
    assert str(found) == "clips: 2 found, without checksums"
    files = files_below(tmp_path / "raw" / "clips", ".mp4")
    assert [str(file.relative_to(tmp_path / "raw")) for file in files] == [
        "clips/linked/train/one.mp4",
        "clips/two.mp4",
    ]


def test_a_full_disk_is_one_sentence_that_names_the_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toy.bin.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"disk is full while writing .*toy\.bin\.part\. .*`equipoise fetch toy` again"):
        fetch(one_file(server, "/a"), tmp_path, patience=PATIENCE)


def test_a_folder_that_cannot_be_made_is_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Cannot write .*file/raw: Not a directory\. Correct that"):
        fetch(one_file(server, "/a"), tmp_path / "file" / "raw", patience=PATIENCE)
