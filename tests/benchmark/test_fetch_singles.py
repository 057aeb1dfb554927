from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from benchmark.dataset import Manifest, Source
from benchmark.errors import DataError
from benchmark.fetch import fetch
from tests.benchmark.toys import CONTENT, MEMBERS, PATIENCE, dataset, single_files
from tests.http_server import Server


def test_files_whose_publisher_states_md5_alone_are_verified_by_that(server: Server, tmp_path: Path) -> None:
    server.content |= {"/a.tar": CONTENT, "/b.tar": CONTENT[1:]}
    md5 = hashlib.md5(CONTENT).hexdigest()
    (tmp_path / "sums.csv").write_text(f"path,md5\na.tar,{md5}\n")
    files = Manifest(tmp_path / "sums.csv", (server.url + "/{path}",))
    (found,) = fetch(dataset(Source(file="all", manifest=files)), tmp_path / "raw", patience=PATIENCE)
    assert str(found) == "all: 1 expected, 1 found, 0 broken"
    (tmp_path / "sums.csv").write_text(f"path,md5\nb.tar,{md5}\n")
    files = Manifest(tmp_path / "sums.csv", files.urls)
    with pytest.raises(DataError, match=rf"md5 [0-9a-f]{{12}}… instead of {md5[:12]}…"):
        fetch(dataset(Source(file="all", manifest=files)), tmp_path / "raw", patience=PATIENCE)


def test_files_without_an_archive_are_fetched_one_by_one(server: Server, tmp_path: Path) -> None:
    (found,) = fetch(single_files(server, tmp_path), tmp_path / "raw", patience=PATIENCE)
    assert str(found) == "clips: 2 expected, 2 found, 0 broken"
    assert sorted(path for path, _ in server.requests) == ["/single/clips/one.wav", "/single/clips/two.wav"]
    assert {path: (tmp_path / "raw" / path).read_bytes() for path in MEMBERS} == MEMBERS


def test_files_without_an_archive_come_from_a_mirror_that_has_them(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "toy" / "clips").mkdir(parents=True)
    (tmp_path / "mirror" / "toy" / "clips" / "two.wav").write_bytes(MEMBERS["clips/two.wav"])
    fetch(single_files(server, tmp_path), tmp_path / "raw", tmp_path / "mirror", patience=PATIENCE)
    assert [path for path, _ in server.requests] == ["/single/clips/one.wav"]


def test_a_pointer_to_a_large_file_in_the_place_of_the_file_is_named(server: Server, tmp_path: Path) -> None:
    toy = single_files(server, tmp_path)
    server.content["/single/clips/one.wav"] = b"version https://git-lfs.github.com/spec/v1\nsize 10\n"
    with pytest.raises(DataError, match=r"clips could not be fetched \(http.*one\.wav: .*, a Git LFS pointer and not "):
        fetch(toy, tmp_path / "raw", patience=PATIENCE)
