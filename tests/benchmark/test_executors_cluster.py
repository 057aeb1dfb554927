from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmark import executors
from benchmark.errors import UsageError
from benchmark.executors import ray, settings, slurm
from benchmark.executors.bundle import Bundle, Spool, bundles
from benchmark.executors.worker import environment
from benchmark.paths import SOURCE_ROOT
from tests.benchmark.test_executors import square_or_raise


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIPOISE_HOME", str(tmp_path))
    (tmp_path / "params.yaml").write_text("experiments: {}\n")
    return tmp_path


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    before = signal.getsignal(signal.SIGTERM)
    found = Spool(tmp_path / "spool")
    with found.opened():
        yield found
    assert not found.folder.exists()
    signal.signal(signal.SIGTERM, before)


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Put a SLURM of one core on the path, whose programs do nothing else than these scripts say."""
    for name, script in {"sinfo": "echo '1 1 (null)'", "squeue": "", "scancel": "", "sbatch": "", **scripts}.items():
        file = folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_executor_without_its_package_names_what_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "find_spec", lambda _package: None)
    with pytest.raises(UsageError, match=rf"needs the package {package}, .* `pip install equipoise\[{name}\]`."):
        executors.load(name)


def test_slurm_without_its_programs_says_where_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"finds no `sbatch`. Run on a machine from which jobs can be submitted."):
        slurm.run(square_or_raise, [1])


def test_slurm_that_does_not_answer_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path, monkeypatch, sinfo="echo 'slurm_load_partitions: Connection refused' >&2; exit 1")
    with pytest.raises(
        UsageError, match=r"SLURM does not answer: `sinfo .*` says 'slurm_load_partitions: Connection refused'."
    ):
        slurm.run(square_or_raise, [1])


def test_what_slurm_says_of_a_job_that_it_refuses_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="no submitit: `pip install equipoise[slurm]`")
    programs(tmp_path, monkeypatch, sbatch="echo 'sbatch: error: Invalid qos specification' >&2; exit 1")
    with pytest.raises(UsageError, match=r"SLURM refused the jobs: .*Invalid qos .* Correct `executors: slurm:` in"):
        list(slurm.run(square_or_raise, [1]))
    assert list((tmp_path / "results" / "work" / "slurm").iterdir()) == []


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_a_ray_address_where_nothing_answers_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        where = address.format(port=taken.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", where)
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
        with pytest.raises(UsageError, match=rf"No Ray cluster answers at RAY_ADDRESS={where}. Start it, or unset"):
            list(ray.run(square_or_raise, [1]))


def test_what_a_killed_driver_left_is_removed_when_its_jobs_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "results" / "work" / "slurm"
    programs(tmp_path, monkeypatch, squeue="case $* in *=equipoise-busy*) echo 7;; *=equipoise-unknown*) exit 1;; esac")
    for name in ("dead", "busy", "unknown"):
        (home / name / "jobs").mkdir(parents=True)
    with Spool(home / "living").opened():
        slurm.run(square_or_raise, [1])
        assert {folder.name for folder in home.iterdir()} == {"busy", "unknown", "living"}


def test_workers_elsewhere_have_one_thread_and_the_drivers_settings_sources_and_folders(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_MIRROR", "/mirror")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/more", str(SOURCE_ROOT)]))
    found = environment()
    assert found["EQUIPOISE_MIRROR"] == "/mirror"
    assert found["EQUIPOISE_HOME"] == str(workspace)
    assert found["EQUIPOISE_DATA"] == str(workspace / "data")
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["PYTHONPATH"] == os.pathsep.join([str(SOURCE_ROOT), "/more"])


def test_settings_of_slurm_are_read_from_params_and_all_have_defaults(workspace: Path) -> None:
    assert settings.slurm() == settings.Slurm()
    (workspace / "params.yaml").write_text("executors: {slurm: {minutes: 60, sbatch: {partition: gpu, mem: 16G}}}\n")
    assert settings.slurm() == settings.Slurm(minutes=60, sbatch={"partition": "gpu", "mem": "16G"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("executors: {slurm: {partition: gpu}}", r"partition: .* Known: minutes, cells, gpus, sbatch, setup"),
        ("executors: {slurm: {minutes: 0}}", r"`executors: slurm:` in .*: minutes: .* Found 0"),
        ("executors: [slurm]", "`executors:` in .* cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(workspace: Path, content: str, message: str) -> None:
    (workspace / "params.yaml").write_text(content)
    with pytest.raises(UsageError, match=message):
        settings.slurm()


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ("2 4 (null)\n", (8, 0)),
        ("4 64 gpu:a100:4(S:0-1)\n", (256, 16)),
        ("3 32+ gpu:2(S:0,1),lustre:1\n1 16 (null)\n", (112, 6)),
        ("1 8 gpu:a100:2,gpu:2g.10gb:3\n", (8, 5)),
        ("", (0, 0)),
    ],
)
def test_the_cores_and_gpus_of_a_partition_are_counted(listing: str, found: tuple[int, int]) -> None:
    assert slurm.capacity(listing) == found


def test_tasks_are_dealt_out_to_four_bundles_per_job_and_neighbours_go_apart() -> None:
    dealt = list(bundles(range(20), 2, 4, 1000))
    assert [len(bundle) for bundle in dealt] == [3, 3, 3, 3, 2, 2, 2, 2]
    assert dealt[0] == [0, 8, 16]
    assert sorted(number for bundle in dealt for number in bundle) == list(range(20))
    assert list(bundles([4, 7], 8, 4, 1000)) == [[4], [7]]
    assert len(list(bundles(range(5000), 400, 4, 1000))) == 1000


def test_a_bundle_runs_what_has_no_outcome_yet(spool: Spool) -> None:
    spool.put(1, "from before")
    Bundle(spool, square_or_raise, cells=1)([(0, 5), (1, 6), (2, 2)])
    assert spool.finished(range(5)) == {0, 1, 2}
    assert (spool.take(0), spool.take(1)) == (25, "from before")
    assert spool.take(2).message == "two is refused"


def test_of_a_job_that_is_gone_the_tasks_it_had_begun_are_suspects_once(spool: Spool) -> None:
    spool.begin(3)
    assert spool.suspects([2, 3, 4]) == [3]
    assert spool.suspects([2, 3, 4]) == [2, 3, 4], "none was begun: any may be the reason"


def test_actors_have_such_parts_of_gpus_that_all_of_them_run() -> None:
    assert ray.share(8, 0) == 0
    assert ray.share(1, 4) == 1
    assert ray.share(3, 2) == 0.5
    assert ray.share(6, 2) == 0.3333
    assert int(1 / ray.share(7, 1)) == 7


def test_a_ray_cluster_has_an_actor_per_core_and_four_per_gpu_where_there_are_any() -> None:
    assert ray.default_jobs(cpus=12, gpus=0) == 12
    assert ray.default_jobs(cpus=12, gpus=2) == 8
    assert ray.default_jobs(cpus=2, gpus=2) == 2
