from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.errors import DataError
from benchmark.fetch import fetch
from tests.benchmark.toys import MEMBERS, PATIENCE, archive, archived, dataset
from tests.http_server import Server


def test_an_archive_that_may_not_be_downloaded_is_unpacked_once_it_was_brought(server: Server, tmp_path: Path) -> None:
    (source,) = archived(server, tmp_path).card.sources
    toy = dataset(replace(source, obtain="Sign the form at example.org."))
    with pytest.raises(DataError, match=r"toy\.zip has to be brought by hand \(toy\.zip is not there\)"):
        fetch(toy, tmp_path / "raw")
    (tmp_path / "raw" / "toy.zip").write_bytes(archive({"clips/one.wav": MEMBERS["clips/one.wav"]}))
    with pytest.raises(DataError, match=r"by hand \(.*toy\.zip: 2 expected, 1 found.*two\.wav is missing"):
        fetch(toy, tmp_path / "raw")
    (tmp_path / "raw" / "toy.zip").write_bytes(archive(MEMBERS))
    assert fetch(toy, tmp_path / "raw")[0].complete


def test_members_are_unpacked_from_below_the_archives_top_folder(server: Server, tmp_path: Path) -> None:
    packed = {f"toy-1.0/{path}": content for path, content in MEMBERS.items()}
    toy = archived(server, tmp_path, archive({**packed, "toy-1.0/README": b"", "toy-1.0/clips/.DS_Store": b""}))
    (found,) = fetch(toy, tmp_path / "raw", patience=PATIENCE)
    assert str(found) == "toy.zip: 2 expected, 2 found, 0 broken, 2 unknown ignored"
    assert {path: (tmp_path / "raw" / path).read_bytes() for path in MEMBERS} == MEMBERS
    assert sorted(file.name for file in (tmp_path / "raw" / "clips").iterdir()) == ["one.wav", "two.wav"]


def test_unpacked_members_need_no_archive_any_more(server: Server, tmp_path: Path) -> None:
    toy = archived(server, tmp_path, archive(MEMBERS))
    fetch(toy, tmp_path / "raw", patience=PATIENCE)
    (tmp_path / "raw" / "toy.zip").unlink()
    fetch(toy, tmp_path / "raw", patience=PATIENCE)
    assert len(server.requests) == 1


def test_a_lost_member_comes_back_from_the_archive_that_is_there(server: Server, tmp_path: Path) -> None:
    toy = archived(server, tmp_path, archive(MEMBERS))
    fetch(toy, tmp_path / "raw", patience=PATIENCE)
    (tmp_path / "raw" / "clips" / "one.wav").write_bytes(b"changed")
    fetch(toy, tmp_path / "raw", patience=PATIENCE)
    assert (tmp_path / "raw" / "clips" / "one.wav").read_bytes() == b"first clip"
    assert len(server.requests) == 1


@pytest.mark.parametrize("changed", [b"other clip", b"of another length"])
def test_a_member_with_other_bytes_is_refused_by_name(server: Server, tmp_path: Path, changed: bytes) -> None:
    toy = archived(server, tmp_path, archive({**MEMBERS, "clips/one.wav": changed}))
    with pytest.raises(
        DataError, match=r"toy\.zip could not be fetched \(.*0\.zip: 2 expected, 2 found, 1 broken \(clips/one\.wav: "
    ):
        fetch(toy, tmp_path / "raw", patience=PATIENCE)
    assert [file.name for file in (tmp_path / "raw" / "clips").iterdir()] == ["two.wav"]
    assert not (tmp_path / "raw" / "toy.zip").exists()


def test_a_broken_archive_is_followed_by_the_next_and_good_members_are_kept(server: Server, tmp_path: Path) -> None:
    half = archive({"clips/one.wav": MEMBERS["clips/one.wav"]})
    rest = archive({"toy-abc/clips/two.wav": MEMBERS["clips/two.wav"]})
    toy = archived(server, tmp_path, b"<html>no archive</html>", archive(MEMBERS)[:-30], half, rest)
    assert fetch(toy, tmp_path / "raw", patience=PATIENCE)[0].complete
    assert [path for path, _ in server.requests] == ["/0.zip", "/1.zip", "/2.zip", "/3.zip"]


def test_a_half_of_one_archive_is_never_continued_with_another(server: Server, tmp_path: Path) -> None:
    toy = archived(server, tmp_path, archive(MEMBERS), archive({f"x/{p}": c for p, c in MEMBERS.items()}))
    server.answers["/0.zip"] = ["cut", "404"]
    assert fetch(toy, tmp_path / "raw", patience=PATIENCE)[0].complete
    assert server.requests[-1] == ("/1.zip", None)


@pytest.mark.parametrize("name", ["../escaped.wav", "/tmp/escaped.wav", "..\\escaped.wav", "C:\\escaped.wav"])
def test_an_archive_with_a_member_outside_the_folder_is_refused_whole(
    server: Server, tmp_path: Path, name: str
) -> None:
    toy = archived(server, tmp_path, archive({**MEMBERS, name: b"bad"}))
    with pytest.raises(DataError, match=r"0\.zip: refused, its member .*escaped\.wav' points outside the folder"):
        fetch(toy, tmp_path / "raw", patience=PATIENCE)
    assert not (tmp_path / "raw" / "clips").exists()


def test_a_manifest_that_points_outside_the_folder_is_refused(server: Server, tmp_path: Path) -> None:
    toy = archived(server, tmp_path, archive(MEMBERS))
    file = tmp_path / "sha256.csv"
    file.write_text(file.read_text().replace("clips/one.wav", "../one.wav"))
    with pytest.raises(DataError, match=r"'\.\./one\.wav' is outside the raw folder"):
        fetch(toy, tmp_path / "raw", patience=PATIENCE)


def test_members_that_no_archive_holds_are_fetched_one_by_one(server: Server, tmp_path: Path) -> None:
    toy = archived(server, tmp_path, archive({**MEMBERS, "clips/two.wav": b"broken clip"}), single=True)
    server.content["/single/clips/two.wav"] = MEMBERS["clips/two.wav"]
    calls: list[tuple[str, int, int | None]] = []
    fetch(toy, tmp_path / "raw", patience=PATIENCE, progress=lambda *call: calls.append(call))
    assert (tmp_path / "raw" / "clips" / "two.wav").read_bytes() == MEMBERS["clips/two.wav"]
    assert [path for path, _ in server.requests] == ["/0.zip", "/single/clips/two.wav"]
    assert calls[-1] == ("clips/two.wav", 11, 11)


def test_a_member_that_nothing_holds_is_named_with_everything_that_was_tried(server: Server, tmp_path: Path) -> None:
    toy = archived(server, tmp_path, archive({"clips/one.wav": MEMBERS["clips/one.wav"]}), single=True)
    with pytest.raises(
        DataError, match=r"toy\.zip could .*0\.zip: 2 expected, 1 found.*single/clips/two\.wav: 404 Not Found"
    ):
        fetch(toy, tmp_path / "raw", patience=PATIENCE)
