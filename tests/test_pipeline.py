"""`dvc repro` in a scratch copy of the project, whose cells are not trained but made up (benchmark/fake_cells.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.paths import SOURCE_ROOT
from benchmark.registry import DATASETS, METHODS, OWN

PIPELINES = {
    "digits": "dvc.yaml",
    "digits_dg": "dvc.yaml",
    "av_digits": "datasets/av_digits/dvc.yaml",
    "av_digits_dg": "datasets/av_digits_dg/dvc.yaml",
}
PREFIX = {"digits_dg": "domain_"}
"""Of the names of an experiment's stages, where another one has the same file."""
PLUMBING = {
    "backbones",
    "cli",
    "dataset",
    "errors",
    "executors",
    "experiments",
    "paths",
    "protocol",
    "registry",
    "leases",
    "store",
    "version",
}
"""Modules that `equipoise table` uses and that do not decide what the table says."""


class Project:
    """A repository with our code and pipelines, and a trainer that takes no time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        binaries = root.parent / "bin"
        binaries.mkdir(exist_ok=True)
        script = binaries / "equipoise"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m benchmark "$@"\n')
        script.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }

    def fill(self, changes: dict[str, dict[str, Any]] | None = None) -> None:
        """Copy the project; `changes` replaces fields of the embedded experiments."""
        ignored = shutil.ignore_patterns("__pycache__", "dvc.lock")
        for folder in ("benchmark", "baselines", "methods", "datasets", "results/published", "results/tuning"):
            shutil.copytree(SOURCE_ROOT / folder, self.root / folder, ignore=ignored)
        shutil.copy(SOURCE_ROOT / "tests/benchmark/fake_cells.py", self.root / "benchmark/run.py")
        for file in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(SOURCE_ROOT / file, self.root / file)
        params = yaml.safe_load((SOURCE_ROOT / "params.yaml").read_text())
        for name, fields in (changes or {}).items():
            params["experiments"][name].update(fields)
        self.write_params(params)
        (self.root / "results/reference").mkdir()
        for name in EMBEDDED:
            self.run("equipoise", "grid", name)
            reference = self.run("equipoise", "table", name, "--format", "json")
            (self.root / f"results/reference/{name}.json").write_text(reference)
        for folder in ("cells", "grids"):
            shutil.rmtree(self.root / "results" / folder)
        self.run("git", "init", "--quiet")
        self.run("dvc", "init", "--quiet")
        self.run("dvc", "config", "core.analytics", "false")
        self.commit()

    def params(self) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load((self.root / "params.yaml").read_text())
        return content

    def write_params(self, params: dict[str, Any]) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "--quiet", "-m", "x")

    def run(self, *command: str) -> str:
        if command[0] == "dvc":
            command = (sys.executable, "-m", *command)
        result = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False, timeout=250
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def repro(self) -> tuple[list[str], str]:
        """Run `dvc repro`; return the stages that ran, and everything it printed."""
        output = self.run("dvc", "repro")
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")], output


EMBEDDED = ("digits", "digits_dg")
SMALL = {
    "digits": {
        "seeds": 3,
        "baselines": {"joint": {}, "unimodal": {"upper": {"modality": "upper"}}},
        "proposed": {"rgm": {}},
    },
    "digits_dg": {
        "seeds": 2,
        "targets": ["r0", "r60"],
        "baselines": {"joint": {}, "base": {}},
        "proposed": {"gmp": {}},
    },
}
REPORTS = {"tables", "figures"}
METHOD_STAGES = {"baselines@joint", "baselines@unimodal", "proposed@rgm"}
DOMAIN_REPORTS = {f"domain_{stage}" for stage in REPORTS}
DOMAIN_METHOD_STAGES = {"domain_baselines@joint", "domain_baselines@base", "domain_proposed@gmp"}


def halves(ran: list[str]) -> tuple[list[str], list[str]]:
    """The stages that ran of the experiment without domains and of the one with them, each in its order."""
    return [stage for stage in ran if not stage.startswith("domain_")], [s for s in ran if s.startswith("domain_")]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[str], str]:
    """A small project after its first `dvc repro`, the stages that ran and what they printed; not to be changed."""
    root = tmp_path_factory.mktemp("first") / "project"
    root.mkdir()
    project = Project(root)
    project.fill(SMALL)
    return project, *project.repro()


@pytest.fixture
def project(first: tuple[Project, list[str], str], tmp_path: Path) -> Project:
    """A copy of it to work on."""
    shutil.copytree(first[0].root, tmp_path / "project")
    return Project(tmp_path / "project")


def test_the_first_repro_trains_everything_in_one_pool_and_compares_the_table(
    first: tuple[Project, list[str], str],
) -> None:
    project, ran, output = first
    assert (project.root / "data/prepared/digits/meta.json").exists()
    plain, domains = halves(ran)
    assert (plain[0], set(plain[1:-2]), set(plain[-2:])) == ("fill", METHOD_STAGES, REPORTS)
    assert (domains[0], set(domains[1:-2]), set(domains[-2:])) == ("domain_fill", DOMAIN_METHOD_STAGES, DOMAIN_REPORTS)
    assert output.count("digits: 9 cells: 0 finished before, 9 finished now, 0 failed") == 1
    assert output.count("digits_dg: 12 cells: 0 finished before, 12 finished now, 0 failed") == 1
    assert output.count("digits: all 3 cells are finished.") == 3
    assert "| rgm" in output
    assert "digits against the reference: 6 cells compared, 6 identical" in output
    assert "| gmp" in output
    assert "digits_dg against the reference: 12 cells compared, 12 identical" in output


def test_the_second_repro_does_nothing_and_says_so(project: Project) -> None:
    ran, output = project.repro()
    assert ran == []
    assert "Data and pipelines are up to date." in output


def test_an_edited_method_reruns_its_stage_and_the_tables_and_nothing_else(project: Project) -> None:
    method = project.root / "methods/rgm.py"
    original = method.read_text()
    method.write_text(original + "# edited\n")
    ran, output = project.repro()
    assert (ran[0], set(ran[1:])) == ("proposed@rgm", REPORTS)
    assert "digits: 3 cells: 0 finished before, 3 finished now, 0 failed" in output

    method.write_text(original)
    ran, output = project.repro()
    assert ran == ["proposed@rgm"], "the results of both sources are there, so nothing is new for tables and figures"
    assert "digits: all 3 cells are finished." in output


def test_a_new_row_runs_its_own_stage_and_the_tables(project: Project) -> None:
    params = project.params()
    params["experiments"]["digits"]["baselines"]["remixing"] = None
    project.write_params(params)
    ran, _ = project.repro()
    assert (ran[0], set(ran[1:])) == ("baselines@remixing", REPORTS)


def test_one_more_seed_trains_one_more_cell_per_row(project: Project) -> None:
    params = project.params()
    params["experiments"]["digits"]["seeds"] = 4
    project.write_params(params)
    ran, output = project.repro()
    assert (ran[0], set(ran[1:-2]), set(ran[-2:])) == ("fill", METHOD_STAGES, REPORTS)
    assert "digits: 12 cells: 9 finished before, 3 finished now" in output


def test_a_method_that_another_builds_on_retrains_both(project: Project) -> None:
    method = project.root / "baselines/joint.py"
    method.write_text(method.read_text() + "# edited\n")
    ran, output = project.repro()
    plain, domains = halves(ran)
    assert (plain[0], set(plain[1:])) == ("baselines@joint", REPORTS)
    assert (set(domains[:-2]), set(domains[-2:])) == (
        {"domain_baselines@joint", "domain_baselines@base"},
        DOMAIN_REPORTS,
    )
    assert output.count("digits_dg: 4 cells: 0 finished before, 4 finished now, 0 failed") == 2


def test_a_fresh_clone_trains_although_the_lock_file_is_committed(project: Project, tmp_path: Path) -> None:
    project.commit()
    project.run("git", "clone", "--quiet", str(project.root), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    assert not (clone.root / "results/cells").exists()
    ran, output = clone.repro()
    plain, domains = halves(ran)
    assert (plain[0], set(plain[1:])) == ("fill", METHOD_STAGES), "the fresh cells give the committed tables"
    assert (domains[0], set(domains[1:])) == ("domain_fill", DOMAIN_METHOD_STAGES)
    assert "digits: 9 cells: 0 finished before, 9 finished now, 0 failed" in output


@pytest.mark.timing
def test_the_whole_pipeline_finds_nothing_to_do_in_less_than_ten_seconds(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    project.fill()
    started = time.perf_counter()
    ran, _ = project.repro()
    first = time.perf_counter() - started
    started = time.perf_counter()
    _, output = project.repro()
    second = time.perf_counter() - started
    assert "Data and pipelines are up to date." in output
    print(f"dvc repro of {len(ran)} stages without training: {first:.1f} s; again: {second:.1f} s")  # noqa: T201
    assert second < 10


def stages(name: str) -> dict[str, Any]:
    """The stages of an experiment, by their names without the prefix."""
    content: dict[str, Any] = yaml.safe_load((SOURCE_ROOT / PIPELINES[name]).read_text())["stages"]
    prefix = PREFIX.get(name, "")
    others = [other for other in PREFIX.values() if other != prefix]
    return {
        stage.removeprefix(prefix): found
        for stage, found in content.items()
        if stage.startswith(prefix) and not stage.startswith(tuple(others))
    }


def params() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SOURCE_ROOT / "params.yaml").read_text())
    return content


def test_every_method_is_a_row_of_an_embedded_experiment() -> None:
    experiments = params()["experiments"].values()
    rows = {
        method
        for experiment in experiments
        if set(experiment["datasets"]) <= {"digits", "digits_dg"}
        for name in (*experiment["baselines"], *experiment.get("proposed", ()))
        for method in name.split("+")
    }
    assert rows == {name for name in METHODS.names() if METHODS.entry(name).origin == OWN}


def test_a_grid_without_preparation_depends_on_every_source_of_its_dataset() -> None:
    for name in EMBEDDED:
        deps = stages(name)["fill"]["deps"]
        sources = [str(file.relative_to(SOURCE_ROOT)) for file in DATASETS.entry(name).source_files()]
        assert all(any(file == dep or file.startswith(f"{dep}/") for dep in deps) for file in sources), sources


@pytest.mark.parametrize("name", ["av_digits", "av_digits_dg"])
def test_preparing_depends_on_every_source_of_the_dataset(name: str) -> None:
    sources = {str(file.relative_to(SOURCE_ROOT)) for file in DATASETS.entry(name).source_files()}
    assert sources - set(PIPELINES.values()) <= set(stages(name)["prepare"]["deps"])


@pytest.mark.parametrize("name", PIPELINES)
def test_the_tables_depend_on_every_module_that_writes_them(name: str) -> None:
    code = (
        "import sys, benchmark.cli, benchmark.experiments, benchmark.store\n"
        "import benchmark.published, benchmark.reference, benchmark.rendering, benchmark.tables\n"
        "print(*(m.split('.')[1] for m in sys.modules if m.startswith('benchmark.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], cwd=SOURCE_ROOT, capture_output=True, text=True, check=True)
    expected = {f"benchmark/{module}.py" for module in set(loaded.stdout.split()) - PLUMBING}
    assert {dep for dep in stages(name)["tables"]["deps"] if dep.startswith("benchmark/")} == expected


@pytest.mark.parametrize("name", PIPELINES)
def test_the_stages_of_a_pipeline_are_fill_methods_tables_figures(name: str) -> None:
    found = stages(name)
    assert list(found)[-5:] == ["fill", "baselines", "proposed", "tables", "figures"]
    assert found["fill"]["cmd"] == f"equipoise grid {name}"
    for group, folder in (("baselines", "baselines"), ("proposed", "methods")):
        assert found[group]["foreach"] == f"${{experiments.{name}.{group}}}"
        stage = found[group]["do"]
        assert stage["cmd"] == f"equipoise grid {name} --method ${{key}}"
        own, *shared, grid = stage["deps"]
        assert (own, grid) == (f"{folder}/${{key}}.py", f"results/grids/{name}.json")
        for method in params()["experiments"][name][group]:
            sources = {str(file.relative_to(SOURCE_ROOT)) for file in METHODS.entry(method).source_files()}
            assert sources <= {f"{folder}/{method}.py", *shared}
        assert stage["outs"] == [{f"results/cells/{name}/small/${{key}}": {"persist": True}}]
