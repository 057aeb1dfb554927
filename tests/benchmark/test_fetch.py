from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from benchmark.dataset import Checksum, Dataset, DatasetCard, Manifest, Source, files_below
from benchmark.download import Patience
from benchmark.errors import DataError, UsageError
from benchmark.fetch import console_progress, fetch
from benchmark.preparation import PreparedWriter

CONTENT = bytes(range(256)) * 4000
PATIENCE = Patience(attempts=3, wait=0.0, stall=0.3)


def sums(content: bytes) -> Checksum:
    return Checksum(hashlib.sha256(content).hexdigest(), len(content))


@dataclass
class Server:
    """A local host; `answers[path]` says what each request in turn meets, the last one for all after it."""

    url: str
    content: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            host.requests.append((self.path, asked))
            answers = host.answers.get(self.path, ["whole"])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            content = host.content.get(self.path)
            if content is None or answer.isdigit():
                self.send_error(int(answer) if answer.isdigit() else 404)
                return
            first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and answer != "no range" else 0
            if first >= len(content) and first:
                self.send_error(416)
                return
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            body = b"<html>" if answer == "wrong" else content[first:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2 if answer in ("cut", "stall") else len(body)
            self.wfile.write(body[:half])
            if answer == "stall":
                host.stalled.wait(10)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        host = Server(f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield host
        host.stalled.set()
        http.shutdown()
        thread.join()


def dataset(*sources: Source) -> type[Dataset]:
    class Toy(Dataset):
        card: ClassVar[DatasetCard] = DatasetCard(
            name="toy",
            title="Toy",
            licence="CC0",
            citation="none",
            shapes={"a": (1,)},
            classes=("no", "yes"),
            splits={"plain": "as it comes"},
            default_split="plain",
            sources=sources,
        )

        def prepare(self, raw: Path, out: PreparedWriter) -> None:
            raise AssertionError(f"fetching prepares nothing in {raw} or {out}")

    return Toy


def one_file(server: Server, *paths: str) -> type[Dataset]:
    server.content |= dict.fromkeys(paths, CONTENT)
    return dataset(Source(file="toy.bin", urls=tuple(server.url + path for path in paths), checksum=sums(CONTENT)))


def archive(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return stream.getvalue()


MEMBERS = {"clips/one.wav": b"first clip", "clips/two.wav": b"second clip"}


def archived(server: Server, tmp_path: Path, *archives: bytes, single: bool = False) -> type[Dataset]:
    """A dataset of two members, its archive served once per given content."""
    manifest = tmp_path / "sha256.csv"
    rows = [f"{path},{sums(content).sha256},{len(content)}" for path, content in MEMBERS.items()]
    manifest.write_text("\n".join(["path,sha256,size", *rows]) + "\n")
    server.content |= {f"/{number}.zip": content for number, content in enumerate(archives)}
    urls = tuple(f"{server.url}/{number}.zip" for number in range(len(archives)))
    patterns = (server.url + "/single/{path}",) if single else ()
    return dataset(
        Source(file="toy.zip", urls=urls, manifest=Manifest(manifest, patterns), obtain="" if urls else "By post.")
    )


def test_a_verified_file_gets_its_name_and_nothing_else_is_left(server: Server, tmp_path: Path) -> None:
    (found,) = fetch(one_file(server, "/a"), tmp_path / "raw", patience=PATIENCE)
    assert found.complete
    assert (tmp_path / "raw" / "toy.bin").read_bytes() == CONTENT
    assert not (tmp_path / "raw" / "toy.bin.part").exists()


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


def test_a_finished_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    toy = one_file(server, "/a")
    fetch(toy, tmp_path, patience=PATIENCE)
    fetch(toy, tmp_path, patience=PATIENCE)
    assert len(server.requests) == 1


def test_a_dataset_without_sources_asks_for_nothing(tmp_path: Path) -> None:
    assert fetch(dataset(), tmp_path / "raw") == []
    assert not (tmp_path / "raw").exists()


def test_a_cut_connection_is_resumed_at_the_byte_where_it_broke(server: Server, tmp_path: Path) -> None:
    toy = one_file(server, "/a")
    server.answers["/a"] = ["cut", "whole"]
    fetch(toy, tmp_path, patience=PATIENCE)
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT
    assert server.requests == [("/a", None), ("/a", f"bytes={len(CONTENT) // 2}-")]


def test_a_connection_that_brings_new_bytes_each_time_is_never_given_up(server: Server, tmp_path: Path) -> None:
    toy = one_file(server, "/a")
    server.answers["/a"] = ["cut"] * 8 + ["whole"]
    fetch(toy, tmp_path, patience=PATIENCE)
    assert len(server.requests) == 9 > PATIENCE.attempts
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT


def test_a_stalled_connection_is_left_and_resumed(server: Server, tmp_path: Path) -> None:
    toy = one_file(server, "/a")
    server.answers["/a"] = ["stall", "whole"]
    fetch(toy, tmp_path, patience=PATIENCE)
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT
    assert server.requests[1] == ("/a", f"bytes={len(CONTENT) // 2}-")


def test_an_unfinished_download_of_an_earlier_run_is_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toy.bin.part").write_bytes(CONTENT[:1000])
    fetch(one_file(server, "/a"), tmp_path, patience=PATIENCE)
    assert server.requests == [("/a", "bytes=1000-")]
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT


def test_a_complete_download_that_was_killed_before_its_renaming_needs_no_request(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "toy.bin.part").write_bytes(CONTENT)
    fetch(one_file(server, "/a"), tmp_path, patience=PATIENCE)
    assert server.requests == []
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    toy = one_file(server, "/a")
    server.answers["/a"] = ["cut", "no range"]
    fetch(toy, tmp_path, patience=PATIENCE)
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT


def test_a_beginning_of_other_bytes_is_thrown_away_and_the_file_fetched_from_the_start(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "toy.bin.part").write_bytes(b"x" * 1000)
    fetch(one_file(server, "/a"), tmp_path, patience=PATIENCE)
    assert [asked for _, asked in server.requests] == ["bytes=1000-", None]
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    toy = one_file(server, "/a")
    server.answers["/a"] = ["503", "429", "whole"]
    fetch(toy, tmp_path, patience=PATIENCE)
    assert len(server.requests) == 3


def test_waits_double_up_to_the_longest(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    toy = one_file(server, "/a")
    server.answers["/a"] = ["503"] * 4 + ["whole"]
    fetch(toy, tmp_path, patience=Patience(attempts=5, wait=1.0, longest_wait=3.0))
    assert waits == [1.0, 2.0, 3.0, 3.0]


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
    assert calls[-1] == ("toy.zip, file by file", 11, 11)


def test_a_member_that_nothing_holds_is_named_with_everything_that_was_tried(server: Server, tmp_path: Path) -> None:
    toy = archived(server, tmp_path, archive({"clips/one.wav": MEMBERS["clips/one.wav"]}), single=True)
    with pytest.raises(
        DataError, match=r"toy\.zip could .*0\.zip: 2 expected, 1 found.*single/clips/two\.wav: 404 Not Found"
    ):
        fetch(toy, tmp_path / "raw", patience=PATIENCE)


def single_files(server: Server, tmp_path: Path) -> type[Dataset]:
    (source,) = archived(server, tmp_path, single=True).card.sources
    server.content |= {f"/single/{path}": content for path, content in MEMBERS.items()}
    return dataset(replace(source, file="clips", obtain=""))


def test_files_without_an_archive_are_fetched_one_by_one(server: Server, tmp_path: Path) -> None:
    (found,) = fetch(single_files(server, tmp_path), tmp_path / "raw", patience=PATIENCE)
    assert str(found) == "clips: 2 expected, 2 found, 0 broken"
    assert [path for path, _ in server.requests] == ["/single/clips/one.wav", "/single/clips/two.wav"]
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


def test_progress_reports_bytes_so_far_and_in_all(server: Server, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    fetch(one_file(server, "/a"), tmp_path, patience=PATIENCE, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("toy.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in calls] == sorted({done for _, done, _ in calls})


def test_progress_is_plain_lines_when_the_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 3.0])
    monkeypatch.setattr("benchmark.fetch.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with console_progress(Console(file=stream)) as progress:
        progress("toy.bin", 1_000_000, 4_000_000)
        progress("toy.bin", 3_000_000, 4_000_000)
    assert stream.getvalue() == "toy.bin: 3.0 of 4.0 MB\n"


def test_progress_is_a_bar_on_a_terminal() -> None:
    stream = io.StringIO()
    with console_progress(Console(file=stream, force_terminal=True, width=100)) as progress:
        progress("toy.bin", 1_000_000, 4_000_000)
        progress("toy.bin", 4_000_000, 4_000_000)
    assert "toy.bin" in stream.getvalue()
    assert "4.0/4.0 MB" in stream.getvalue()
