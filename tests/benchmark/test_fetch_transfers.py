from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from benchmark.dataset import Source
from benchmark.download import Patience, size_of
from benchmark.errors import DataError
from benchmark.fetch import fetch
from benchmark.paths import SOURCE_ROOT
from tests.benchmark.toys import CONTENT, PATIENCE, one_file, sums
from tests.http_server import Server


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
    monkeypatch.setattr("benchmark.download.sleep_using_event", lambda _stopped: waits.append)
    toy = one_file(server, "/a")
    server.answers["/a"] = ["503"] * 4 + ["whole"]
    fetch(toy, tmp_path, patience=Patience(attempts=5, wait=1.0, longest_wait=3.0))
    assert waits == [1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize("status", ["429", "503"])
def test_a_host_that_asks_to_be_left_alone_is(server: Server, tmp_path: Path, status: str) -> None:
    toy = one_file(server, "/a")
    server.answers["/a"], server.headers["Retry-After"] = [status, "whole"], "1"
    started = time.monotonic()
    fetch(toy, tmp_path, patience=PATIENCE)
    assert time.monotonic() - started > 1
    assert len(server.requests) == 2


@pytest.mark.parametrize("date", [False, True])
def test_a_host_that_asks_to_be_left_alone_for_long_is_given_up_with_its_words(
    server: Server, tmp_path: Path, date: bool
) -> None:
    toy = one_file(server, "/a", "/b")
    server.answers |= {"/a": ["503"], "/b": ["503"]}
    later = datetime.now(UTC) + timedelta(seconds=3600)
    server.headers["Retry-After"] = format_datetime(later, usegmt=True) if date else "3600"
    with pytest.raises(DataError, match=r"503 Service Unavailable, it asks to be left alone for (3600|359\d) s"):
        fetch(toy, tmp_path, patience=PATIENCE)
    assert len(server.requests) == 1


def fetching(server: Server, folder: Path) -> subprocess.Popen[str]:
    """Fetch two files into `folder` in a process of its own."""
    server.content |= {"/a": CONTENT, "/b": CONTENT}
    sources = tuple(Source(file=f"{name}.bin", urls=(f"{server.url}/{name}",), checksum=sums(CONTENT)) for name in "ab")
    code = (
        "import signal, sys\nfrom pathlib import Path, PosixPath\nfrom benchmark import fetchable\n"
        "from benchmark.cli import main\nfrom benchmark.dataset import Checksum, Source\n"
        # A shell may start what it puts into the background without this handler.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"fetchable._fetchable = lambda name: fetchable._Fetchable(name, {sources!r}, Path({str(folder)!r}))\n"
        "sys.exit(main(['fetch', 'toy']))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=SOURCE_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_ctrl_c_ends_a_silent_download_at_once_and_keeps_files_and_parts(server: Server, tmp_path: Path) -> None:
    server.answers["/b"] = ["stall"]
    with fetching(server, tmp_path) as process:
        wait_for(lambda: (tmp_path / "a.bin").is_file() and (tmp_path / "b.bin.part").is_file())
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert (process.returncode, out) == (130, "")
    assert "Interrupted." in err
    assert "Traceback" not in err
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert CONTENT.startswith((tmp_path / "b.bin.part").read_bytes())


def test_a_killed_fetch_goes_on_at_the_byte_where_it_was(server: Server, tmp_path: Path) -> None:
    server.answers["/b"] = ["stall", "whole"]
    with fetching(server, tmp_path) as process:
        wait_for(lambda: (tmp_path / "a.bin").is_file() and size_of(tmp_path / "b.bin.part") > 400_000)
        process.kill()
    have = size_of(tmp_path / "b.bin.part")
    server.requests.clear()
    with fetching(server, tmp_path) as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, server.requests) == (0, [("/b", f"bytes={have}-")])
    assert out.splitlines() == [f"{name}.bin: 1 expected, 1 found, 0 broken" for name in "ab"]
    assert (tmp_path / "b.bin").read_bytes() == CONTENT
