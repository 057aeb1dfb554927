from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.processes import alive, wait_until
from tests.cluster.real import trained_on
from tests.cluster.toy import PATIENCE, Driver

pytest.importorskip("ray", reason="no Ray: `pip install equipoise[ray]`")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node, of one core each."""
    found = importlib.import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    # A driver belongs to a node of its own address, whichever it finds first: not to the one that is to be lost.
    found.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    yield found
    found.shutdown()


@pytest.fixture
def home(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return tmp_path


@pytest.fixture
def driver(home: Path) -> Iterator[Driver]:
    """The driver of four cells that wait to be released; a test that fails does not leave it to the next."""
    (home / "hold").touch()
    found = Driver(home, "ray", 4)
    yield found
    found.kill()


def test_a_grid_finishes_on_both_nodes_and_leaves_nothing_behind(driver: Driver) -> None:
    driver.wait_until_begun(2)
    driver.release()
    driver.finish()
    assert "toy: 4 cells: 0 finished before, 4 finished now, 0 failed" in driver.output
    assert len({pid for _, pid, _ in driver.lines("begun")}) == 2, "a worker did not stay warm"
    driver.wait_until_workers_ended()


def test_cells_have_the_bits_of_those_that_no_cluster_trained(home: Path) -> None:
    assert trained_on("ray", home / "there") == trained_on("local", home / "here")


def test_a_worker_that_is_killed_costs_no_cell(driver: Driver) -> None:
    [(seed, pid, _), *_] = driver.wait_until_begun(2)
    os.kill(int(pid), signal.SIGKILL)
    driver.wait_until_begun(3)
    driver.release()
    driver.finish()
    assert [first for first, *_ in driver.lines("begun")].count(seed) == 2


def test_a_killed_driver_leaves_no_worker_and_its_successor_picks_up(driver: Driver) -> None:
    driver.wait_until_begun(2)
    driver.kill()
    driver.wait_until_workers_ended()
    driver.release()
    driver.start()
    driver.finish()


def test_ctrl_c_ends_the_workers(driver: Driver) -> None:
    driver.wait_until_begun(2)
    driver.interrupt()
    assert "4 left. Give the same command again to go on." in driver.output
    assert driver.lines("ended") == []


def test_a_lost_node_costs_no_cell_even_where_no_other_takes_its_place(cluster: Any, driver: Driver) -> None:
    driver.wait_until_begun(2)
    [second] = cluster.worker_nodes
    cluster.remove_node(second, allow_graceful=False)
    wait_until(lambda: sum(alive(int(pid)) for _, pid, _ in driver.lines("begun")) == 1, PATIENCE)
    driver.release()
    driver.finish()
