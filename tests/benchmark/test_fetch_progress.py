from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmark.fetch import fetch
from benchmark.fetch_progress import LARGE, console_progress
from tests.benchmark.toys import CONTENT, PATIENCE, one_file, single_files
from tests.http_server import Server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only element."""
    now = [100.0]
    monkeypatch.setattr("benchmark.fetch_progress.time.monotonic", lambda: now[0])
    return now


def test_progress_reports_bytes_so_far_and_in_all(server: Server, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    fetch(one_file(server, "/a"), tmp_path, patience=PATIENCE, progress=lambda *call: calls.append(call))
    assert (calls[0], calls[-1]) == (("toy.bin", 0, len(CONTENT)), ("toy.bin", len(CONTENT), len(CONTENT)))
    dones = [done for _, done, _ in calls]
    assert dones == sorted(dones)


def test_every_file_is_announced_with_what_is_there_before_the_first_one_comes(server: Server, tmp_path: Path) -> None:
    members = {f"clips/{number}.wav": bytes(10) for number in range(50)}
    (tmp_path / "raw" / "clips").mkdir(parents=True)
    (tmp_path / "raw" / "clips" / "7.wav.part").write_bytes(bytes(4))
    calls: list[tuple[str, int, int | None]] = []
    toy = single_files(server, tmp_path, members)
    fetch(toy, tmp_path / "raw", patience=PATIENCE, progress=lambda *call: calls.append(call))
    assert calls[:50] == [(path, 4 if path == "clips/7.wav" else 0, 10) for path in members]


def test_plain_lines_add_up_all_files_with_rate_and_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    with console_progress(Console(file=stream)) as progress:
        for name in ("a", "b"):
            progress(name, 0, 4_000_000)
        for second in range(1, 6):
            clock[0] += 1
            progress("a" if second < 5 else "b", 1_000_000 * (second if second < 5 else 2), 4_000_000)
    assert stream.getvalue().splitlines() == [
        "0 of 2 files: 2.0 of 8.0 MB, 1.0 MB/s, 0:00:06 left",
        "1 of 2 files: 4.0 of 8.0 MB, 1.0 MB/s, 0:00:04 left",
    ]


def test_bytes_of_an_earlier_run_do_not_count_for_the_rate(clock: list[float]) -> None:
    stream = io.StringIO()
    with console_progress(Console(file=stream)) as progress:
        progress("toy.bin", 6_000_000, 9_000_000)
        for done in (6_500_000, 7_000_000):
            clock[0] += 1
            progress("toy.bin", done, 9_000_000)
    assert stream.getvalue() == "toy.bin: 7.0 of 9.0 MB, 500.0 kB/s, 0:00:04 left\n"


def test_no_time_left_is_given_while_the_size_of_a_file_is_unknown(clock: list[float]) -> None:
    stream = io.StringIO()
    with console_progress(Console(file=stream)) as progress:
        progress("a", 0, 4_000_000)
        progress("b", 0, None)
        for done in (1_000_000, 2_000_000):
            clock[0] += 1
            progress("a", done, 4_000_000)
    assert stream.getvalue() == "0 of 2 files: 2.0 MB, 1.0 MB/s\n"


def test_progress_is_a_bar_on_a_terminal_with_rate_and_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    with console_progress(Console(file=stream, force_terminal=True, width=100)) as progress:
        progress("toy.bin", 0, 4_000_000)
        for done in (1_000_000, 2_000_000):
            clock[0] += 1
            progress("toy.bin", done, 4_000_000)
    last = stream.getvalue().rpartition("toy.bin")[2]
    assert "2.0/4.0 MB" in last
    assert "1.0 MB/s" in last
    assert "0:00:02" in last


def test_thousands_of_small_files_share_one_bar_and_a_large_one_has_its_own_until_it_is_there(
    clock: list[float],
) -> None:
    stream = io.StringIO()
    with console_progress(Console(file=stream, force_terminal=True, width=100)) as progress:
        for number in range(2000):
            progress(f"{number}.wav", 0, 10)
        progress("large.zip", 0, LARGE)
        for number in range(1000):
            progress(f"{number}.wav", 10, 10)
        clock[0] += 1
        progress("large.zip", 1_000_000, LARGE)
        clock[0] += 1
        progress("large.zip", LARGE, LARGE)
    shown = stream.getvalue()
    assert "1,000 of 2,001 files" in shown
    assert "large.zip" in shown
    assert ".wav" not in shown
    assert "large.zip" not in shown.rpartition("1,001 of 2,001 files")[2]
