from __future__ import annotations

from collections.abc import Collection
from typing import Any

from benchmark.executors import Failure, Outcome
from benchmark.executors.pool import Died, serve


class Scripted:
    """A worker that answers every task with the next of its answers."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.given, self.running = list(answers), list[object](), False

    def send(self, task: object) -> None:
        self.given.append(task)
        self.running = True

    def answer(self) -> Any:
        return self.answers.pop(0)

    def terminate(self) -> None: ...

    def stop(self) -> None:
        self.running = False


def first(busy: Collection[Scripted]) -> list[Scripted]:
    return [next(iter(busy))]


def last(busy: Collection[Scripted]) -> list[Scripted]:
    return [list(busy)[-1]]


OUT = Failure("OutOfMemoryError", "CUDA out of memory.")


def test_a_worker_for_which_nothing_waits_is_stopped_so_that_another_can_start() -> None:
    idle, busy = Scripted(1), Scripted(2)
    outcomes = serve(["a", "b"], [busy, idle], first)
    assert next(outcomes).result == 1
    assert next(outcomes).result == 2
    assert not idle.running


def test_a_worker_without_memory_is_dropped_and_its_task_given_to_another() -> None:
    crowded, other = Scripted(OUT), Scripted(1, 2, 3)
    assert [outcome.result for outcome in serve(["a", "b", "c"], [other, crowded], first)] == [1, 2, 3]
    assert (crowded.given, other.given) == (["a"], ["b", "c", "a"])


def test_as_many_workers_as_there_are_gpus_stay() -> None:
    one, two = Scripted(OUT, 1), Scripted(OUT, 2)
    outcomes = serve(["a", "b"], [one, two], first, least=2)
    assert {outcome.result for outcome in outcomes} == {1, 2}
    assert len(one.given) == len(two.given) == 2


def test_a_task_fails_after_three_tries_with_what_is_known_of_the_last() -> None:
    assert list(serve(["a"], [Scripted(*[Died("SIGSEGV", "its log")] * 3)], first)) == [
        Outcome("a", Failure("WorkerDied", "The worker process ended with SIGSEGV, 3 times in a row.", "its log"))
    ]
    assert list(serve(["a"], [Scripted(OUT, OUT, OUT)], first)) == [Outcome("a", OUT)]


def test_every_worker_is_stopped_when_the_outcomes_are_closed() -> None:
    workers = [Scripted(1), Scripted(2)]
    outcomes = serve(["a", "b", "c"], workers, last)
    next(outcomes)
    outcomes.close()
    assert not any(worker.running for worker in workers)
