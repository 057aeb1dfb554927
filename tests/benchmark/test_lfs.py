from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark.dataset import Dataset
from benchmark.errors import DataError
from benchmark.fetch import fetch
from benchmark.lfs import BATCH
from tests.benchmark.toys import PATIENCE, dataset, single_files, sums
from tests.http_server import Server

BATCHES = "/clips.git/info/lfs/objects/batch"
MEMBERS = {f"clips/{number:03}.wav": f"clip {number}".encode() for number in range(2 * BATCH + 50)}
FEW = dict(list(MEMBERS.items())[:3])


def repository(server: Server, tmp_path: Path, members: dict[str, bytes]) -> type[Dataset]:
    """Files that are objects of one Git LFS repository, each behind a key, and that have URLs, too."""
    (source,) = single_files(server, tmp_path, members).card.sources
    assert source.manifest is not None
    for content in members.values():
        name = sums(content).sha256
        server.content[f"/objects/{name}"], server.keys[f"/objects/{name}"] = content, f"key of {name}"
    return dataset(replace(source, manifest=replace(source.manifest, lfs=(server.url + "/clips.git",))))


def answering(
    server: Server, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda item: item
) -> list[list[dict[str, Any]]]:
    """Answer batches as a repository does, with every object changed; returns the objects of each, once asked."""
    asked: list[list[dict[str, Any]]] = []

    def answer(body: dict[str, Any]) -> tuple[int, object]:
        assert (body["operation"], body["transfers"]) == ("download", ["basic"])
        asked.append(body["objects"])
        return 200, {"transfer": "basic", "objects": [change(_object(server, item)) for item in body["objects"]]}

    server.posts[BATCHES] = answer
    return asked


def _object(server: Server, item: dict[str, Any]) -> dict[str, Any]:
    oid = item["oid"]
    download = {"href": f"{server.url}/objects/{oid}", "header": {"Authorization": f"key of {oid}"}, "expires_in": 3600}
    return {**item, "actions": {"download": download}}


def fetched(toy: type[Dataset], tmp_path: Path) -> dict[str, bytes]:
    fetch(toy, tmp_path / "raw", patience=PATIENCE)
    return {f"clips/{file.name}": file.read_bytes() for file in (tmp_path / "raw" / "clips").iterdir()}


def test_objects_are_asked_for_by_the_hundred_and_fetched_with_the_headers_that_open_them(
    server: Server, tmp_path: Path
) -> None:
    toy = repository(server, tmp_path, MEMBERS)
    asked = answering(server)
    assert fetched(toy, tmp_path) == MEMBERS
    assert sorted(map(len, asked)) == [50, BATCH, BATCH]
    sizes = {item["oid"]: item["size"] for batch in asked for item in batch}
    assert sizes == {sums(content).sha256: len(content) for content in MEMBERS.values()}
    assert not [path for path in server.asked if path.startswith("/single/")]


def test_only_what_is_missing_is_asked_for(server: Server, tmp_path: Path) -> None:
    toy = repository(server, tmp_path, FEW)
    asked = answering(server)
    (tmp_path / "raw" / "clips").mkdir(parents=True)
    (tmp_path / "raw" / "clips" / "001.wav").write_bytes(FEW["clips/001.wav"])
    assert fetched(toy, tmp_path) == FEW
    assert [len(batch) for batch in asked] == [2]


def test_a_repository_that_refuses_is_asked_once_and_the_files_come_from_their_urls(
    server: Server, tmp_path: Path
) -> None:
    toy = repository(server, tmp_path, MEMBERS)
    server.posts[BATCHES] = lambda _body: (403, {"message": "This repository exceeded its LFS budget."})
    assert fetched(toy, tmp_path) == MEMBERS
    assert server.asked[BATCHES] == 1


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (403, {"message": "exceeded its LFS budget"}, r"403 Forbidden \(exceeded its LFS budget\)"),
        (404, "no JSON object", "404 Not Found"),
        (200, {"objects": None}, "no answer of a Git LFS repository"),
        (200, {"objects": []}, "no word of this object"),
        (200, {"objects": [{"oid": sums(FEW["clips/000.wav"]).sha256}]}, "no address of this object"),
        (200, {"objects": [{"oid": "", "actions": []}]}, "no answer of a Git LFS repository"),
        (503, {}, "503 Service Unavailable, 0 bytes so far"),
    ],
)
def test_what_a_repository_says_is_named_beside_what_the_urls_say(
    server: Server, tmp_path: Path, status: int, answer: object, reason: str
) -> None:
    toy = repository(server, tmp_path, FEW)
    server.posts[BATCHES] = lambda _body: (status, answer)
    server.content.clear()
    with pytest.raises(
        DataError, match=rf"clips/000\.wav in http\S*/clips\.git: {reason}; http\S*single/clips/000\.wav: 404 Not Found"
    ):
        fetch(toy, tmp_path / "raw", patience=PATIENCE)


def test_an_object_that_the_repository_lacks_comes_from_its_url_alone(server: Server, tmp_path: Path) -> None:
    toy = repository(server, tmp_path, FEW)
    lost = sums(FEW["clips/001.wav"]).sha256

    def lose(item: dict[str, Any]) -> dict[str, Any]:
        gone = {"oid": lost, "error": {"code": 404, "message": "Object does not exist"}}
        return gone if item["oid"] == lost else item

    answering(server, lose)
    assert fetched(toy, tmp_path) == FEW
    assert [path for path in server.asked if path.startswith("/single/")] == ["/single/clips/001.wav"]


def test_an_address_that_has_expired_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    toy = repository(server, tmp_path, FEW)

    def expire(item: dict[str, Any]) -> dict[str, Any]:
        item["actions"]["download"]["expires_in"] = 0
        return item

    asked = answering(server, expire)
    assert fetched(toy, tmp_path) == FEW
    assert [len(batch) for batch in asked] == [3, 1, 1]


def test_objects_are_resumed_and_verified_like_every_file(server: Server, tmp_path: Path) -> None:
    toy = repository(server, tmp_path, FEW)
    answering(server)
    names = [sums(content).sha256 for content in FEW.values()]
    server.answers |= {f"/objects/{names[0]}": ["cut", "whole"], f"/objects/{names[1]}": ["wrong"]}
    assert fetched(toy, tmp_path) == FEW
    assert (f"/objects/{names[0]}", "bytes=3-") in server.requests
    assert server.asked["/single/clips/001.wav"] == 1
