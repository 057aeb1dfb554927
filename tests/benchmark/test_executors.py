from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmark import executors
from benchmark.errors import UsageError
from benchmark.executors import Failure, Outcome
from benchmark.executors.local import run
from benchmark.paths import SOURCE_ROOT
from tests.benchmark.processes import alive, wait_until


def square(number: int) -> int:
    return number * number


def square_or_raise(number: int) -> int:
    if number == 2:
        raise ValueError("two is refused")
    return number * number


def die_on_two(folder: Path, number: int) -> int:
    with (folder / "tries").open("a") as stream:
        stream.write(f"{number}\n")
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number * number


def die_first(folder: Path, number: int) -> int:
    marker = folder / str(number)
    if not marker.exists():
        marker.touch()
        os._exit(3)
    return number * number


def worker_facts(_task: int) -> dict[str, Any]:
    return {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}


def unpicklable(_task: int) -> Any:
    return lambda: None


def sleep_after_noting_pid(folder: Path, number: int) -> int:
    (folder / str(os.getpid())).touch()
    time.sleep(600 if number else 0)
    return number


def results(outcomes: list[Outcome[int, Any]]) -> dict[int, Any]:
    return {outcome.task: outcome.result for outcome in outcomes}


def test_every_task_has_one_outcome() -> None:
    outcomes = list(run(square, [1, 2, 3, 4, 5], jobs=2))
    assert len(outcomes) == 5
    assert results(outcomes) == {1: 1, 2: 4, 3: 9, 4: 16, 5: 25}


def test_no_task_starts_no_process() -> None:
    assert list(run(square, [], jobs=2)) == []


def test_an_exception_fails_its_own_task_with_its_traceback() -> None:
    found = results(list(run(square_or_raise, [1, 2, 3], jobs=1)))
    assert found[1] == 1
    assert found[3] == 9
    failure = found[2]
    assert (failure.kind, failure.message) == ("ValueError", "two is refused")
    assert "square_or_raise" in failure.traceback


def test_a_worker_that_is_killed_fails_its_own_task_after_three_tries(tmp_path: Path) -> None:
    found = results(list(run(partial(die_on_two, tmp_path), [1, 2, 3, 4, 5], jobs=2)))
    failure = found.pop(2)
    assert found == {1: 1, 3: 9, 4: 16, 5: 25}
    assert isinstance(failure, Failure)
    assert failure.kind == "WorkerDied"
    assert "SIGKILL (out of memory?), 3 times" in failure.message
    tries = (tmp_path / "tries").read_text().split()
    assert sorted(tries) == ["1", "2", "2", "2", "3", "4", "5"]


def test_a_worker_that_dies_once_costs_no_task(tmp_path: Path) -> None:
    assert results(list(run(partial(die_first, tmp_path), [1, 2], jobs=2))) == {1: 1, 2: 4}


def test_workers_are_warm_separate_and_single_threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    facts = list(results(list(run(worker_facts, [1, 2, 3, 4], jobs=1))).values())
    assert len({fact["pid"] for fact in facts}) == 1
    assert os.getpid() not in {fact["pid"] for fact in facts}
    assert {fact["threads"] for fact in facts} == {"1"}


def test_a_result_that_cannot_be_sent_is_a_failure() -> None:
    [outcome] = run(unpicklable, [1], jobs=1)
    assert isinstance(outcome.result, Failure)
    assert "pickle" in outcome.result.message


def test_closing_the_outcomes_ends_busy_workers(tmp_path: Path) -> None:
    with closing(run(partial(sleep_after_noting_pid, tmp_path), [0, 1, 2], jobs=2)) as outcomes:
        assert next(outcomes).task == 0
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    assert not any(alive(int(file.name)) for file in tmp_path.iterdir())


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "from benchmark.executors.local import run\n"
        "from tests.benchmark.test_executors import sleep_after_noting_pid\n"
        "list(run(partial(sleep_after_noting_pid, Path(sys.argv[1])), [1, 2], jobs=2))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=SOURCE_ROOT) as parent:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        pids = [int(file.name) for file in tmp_path.iterdir()]
        assert all(alive(pid) for pid in pids)
        parent.kill()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_an_unknown_executor_is_answered_with_the_list() -> None:
    with pytest.raises(UsageError, match=r"Unknown executor 'locl'. Did you mean 'local'"):
        executors.load("locl")
