from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.benchmark.processes import alive, wait_until
from tests.cluster import slurm
from tests.cluster.real import trained_on
from tests.cluster.slurm import Cluster
from tests.cluster.toy import PATIENCE, Driver

pytest.importorskip("submitit", reason="no submitit: `pip install equipoise[slurm]`")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())]

Start = Callable[[int], Driver]


@pytest.fixture(scope="module")
def engine() -> Iterator[Cluster]:
    with slurm.running() as found:
        yield found


@pytest.fixture
def cluster(engine: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    for name, value in engine.environment.items():
        monkeypatch.setenv(name, value)
    return engine


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Start]:
    """Start drivers of cells that wait to be released; a test that fails leaves neither them nor their jobs behind."""
    (tmp_path / "hold").touch()
    with ExitStack() as ending:

        def started(cells: int) -> Driver:
            driver = Driver(tmp_path, "slurm", cells)
            ending.callback(driver.kill)
            return driver

        yield started
    cluster.cancel_jobs()


def test_a_grid_finishes_on_both_nodes_and_leaves_nothing_behind(cluster: Cluster, start: Start) -> None:
    driver = start(4)
    begun = driver.wait_until_begun(2)
    assert {node for *_, node in begun} == {"node1", "node2"}
    driver.release()
    driver.finish()
    assert "toy: 4 cells: 0 finished before, 4 finished now, 0 failed" in driver.output
    assert len(driver.lines("begun")) == 4
    assert cluster.jobs() == []


@pytest.mark.usefixtures("cluster")
def test_cells_have_the_bits_of_those_that_no_cluster_trained(tmp_path: Path) -> None:
    assert trained_on("slurm", tmp_path / "there") == trained_on("local", tmp_path / "here")


def test_a_worker_that_is_killed_costs_no_cell(start: Start) -> None:
    driver = start(4)
    [(seed, pid, _), *_] = driver.wait_until_begun(2)
    os.kill(int(pid), signal.SIGKILL)
    driver.wait_until_begun(3)
    driver.release()
    driver.finish()
    assert [first for first, *_ in driver.lines("begun")].count(seed) == 2


def test_a_job_at_its_time_limit_is_queued_again_with_what_is_left(cluster: Cluster, start: Start) -> None:
    driver = start(10)
    driver.wait_until_begun(2)
    driver.release()
    driver.wait_until_begun(4)
    driver.hold()
    wait_until(lambda: len(driver.lines("ended")) + 2 == len(driver.lines("begun")), PATIENCE)
    ended = {seed for seed, *_ in driver.lines("ended")}
    [job, *_] = cluster.call("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%i").split()
    cluster.start("scancel", "--signal=USR2", job)  # not waited for: it repeats itself until the job runs again
    wait_until(lambda: cluster.call("squeue", "--noheader", f"--jobs={job}", "--format=%T") != "RUNNING", PATIENCE)
    driver.release()
    driver.finish()
    begun = [seed for seed, *_ in driver.lines("begun")]
    assert all(begun.count(seed) == 1 for seed in ended)


def test_the_cells_of_a_job_that_is_gone_are_given_to_another(cluster: Cluster, start: Start) -> None:
    driver = start(4)
    driver.wait_until_begun(2)
    cluster.cancel_jobs()
    driver.wait_until_workers_ended()
    driver.release()
    driver.finish()


def test_a_lost_node_costs_no_cell(cluster: Cluster, start: Start) -> None:
    driver = start(4)
    driver.wait_until_begun(2)
    cluster.lose_node("node2")
    wait_until(lambda: not any(alive(int(pid)) for _, pid, node in driver.lines("begun") if node == "node2"))
    driver.release()
    driver.finish()
    cluster.start_node("node2")


def test_jobs_outlive_a_killed_driver_and_its_successor_picks_up(cluster: Cluster, start: Start) -> None:
    driver = start(6)
    driver.wait_until_begun(2)
    driver.kill()
    driver.start()
    driver.release()
    assert driver.process.wait(PATIENCE) == 0, driver.output
    assert sorted(int(seed) for seed, *_ in driver.lines("ended")) == list(range(6))
    wait_until(lambda: cluster.jobs() == [], PATIENCE)
    driver.seeds = 7
    driver.start()
    driver.finish()  # and sees that nothing is left of the killed driver either


def test_ctrl_c_cancels_the_jobs(cluster: Cluster, start: Start) -> None:
    driver = start(4)
    driver.wait_until_begun(2)
    driver.interrupt()
    assert "4 left. Give the same command again to go on." in driver.output
    assert cluster.jobs() == []
    driver.release()
    driver.start()
    driver.finish()


def test_an_option_that_slurm_refuses_is_named(start: Start, tmp_path: Path) -> None:
    driver = start(4)
    driver.kill()
    (tmp_path / "params.yaml").write_text("experiments: {}\nexecutors: {slurm: {gpus: 1, sbatch: {qos: none}}}\n")
    assert driver.start().wait(PATIENCE) != 0
    assert "SLURM refused the jobs" in driver.output
