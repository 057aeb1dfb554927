"""Registries: lazy, with the nearest name for a typo and both places for a collision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark.errors import UsageError
from benchmark.paths import SOURCE_ROOT
from benchmark.registry import BACKBONES, DATASETS, FUSIONS, METHODS, OWN, Entry, Registry, registries


def entry(name: str, module: str, origin: str = OWN) -> Entry:
    return Entry(name, module, None, "method", origin)


def test_every_file_of_baselines_and_methods_is_a_registered_method() -> None:
    files = {path.stem for folder in ("baselines", "methods") for path in (SOURCE_ROOT / folder).glob("[!_]*.py")}
    assert set(METHODS.names()) == files
    assert METHODS.entry("joint").kind == "baseline"
    assert METHODS.entry("rgm").kind == "proposed"


@pytest.mark.parametrize("name", METHODS.names())
def test_the_authors_values_for_a_dataset_are_options_of_the_method(name: str) -> None:
    method = METHODS.load(name)
    for dataset, values in method.official.items():
        assert dataset == dataset.lower().replace("-", "_")
        assert values
        assert method.Options.model_validate(values).model_fields_set == set(values)


def test_fusions_and_backbones_are_named_after_their_classes() -> None:
    assert FUSIONS.names() == ["concat", "film", "gated", "sum"]
    assert {"small", "resnet18"} <= set(BACKBONES.names())
    assert {"digits", "av_digits"} <= set(DATASETS.names())


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list() -> None:
    with pytest.raises(UsageError, match=r"Unknown method 'ogmge'\. Did you mean 'ogm_ge'\? Known: .*joint"):
        METHODS.entry("ogmge")


def test_two_entries_of_one_name_name_both_places() -> None:
    registry: Registry[Any] = Registry(
        "method", lambda: [entry("a", "baselines.a"), entry("a", "other.a", "pkg")], "benchmark.method:Method", "none"
    )
    with pytest.raises(UsageError, match=r"'a': baselines\.a \(equipoise\) and other\.a \(pkg\)"):
        registry.names()


def test_a_module_without_a_subclass_is_refused() -> None:
    registry: Registry[Any] = Registry(
        "method", lambda: [entry("errors", "benchmark.errors")], "benchmark.method:Method", "none"
    )
    with pytest.raises(UsageError, match=r"benchmark\.errors must define exactly one subclass of Method, found \[\]"):
        registry.load("errors")


@pytest.mark.parametrize("plural", ["methods", "datasets", "backbones", "fusions"])
def test_every_entry_has_a_one_line_description(plural: str) -> None:
    registry = registries()[plural]
    assert all(registry.entry(name).description() for name in registry.names())


def test_naming_and_digesting_import_neither_torch_nor_a_method() -> None:
    code = (
        "import sys; from benchmark.registry import METHODS, registries; "
        "[r.entry(n).source_digest() for r in registries().values() for n in r.names()]; "
        "assert 'torch' not in sys.modules and 'baselines.joint' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SOURCE_ROOT)


def test_the_digest_follows_the_file_and_what_it_imports_from_its_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmark.registry.SOURCE_ROOT", tmp_path)
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "a.py").write_text("from baselines.b import f\n")
    (tmp_path / "baselines" / "b.py").write_text("f = 1\n")
    (tmp_path / "baselines" / "c.py").write_text("f = 1\n")

    def digest() -> str:
        return entry("a", "baselines.a").source_digest()

    before = digest()
    (tmp_path / "baselines" / "c.py").write_text("f = 2\n")
    assert digest() == before
    (tmp_path / "baselines" / "b.py").write_text("f = 2\n")
    assert digest() != before


def test_relative_imports_and_packages_of_the_family_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "pkgx"
    for name, text in {
        "__init__.py": "",
        "methods/__init__.py": "",
        "methods/rel.py": "from .near import f\nfrom ..helper import g\nimport pkgx.sub\nimport json\n",
        "methods/near.py": "f = 1\n",
        "helper.py": "from pkgx.deep import h\n",
        "deep.py": "h = 1\n",
        "sub/__init__.py": "",
        "unused.py": "",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    found = {str(file.relative_to(package)) for file in entry("rel", "pkgx.methods.rel", "pkgx").source_files()}
    assert found >= {"methods/rel.py", "methods/near.py", "helper.py", "deep.py", "sub/__init__.py"}
    assert "unused.py" not in found


def test_a_dataset_counts_what_it_imports_of_another_dataset() -> None:
    assert SOURCE_ROOT / "datasets/digits/images.py" in DATASETS.entry("av_digits").source_files()


@pytest.mark.parametrize(("name", "file"), [("small", "small.py"), ("resnet18", "resnet.py"), ("vittiny", "vit.py")])
def test_an_own_backbone_that_builds_on_no_other_counts_with_its_file_alone(name: str, file: str) -> None:
    assert BACKBONES.entry(name).source_files() == [SOURCE_ROOT / "benchmark/backbones" / file]


@pytest.mark.parametrize("name", ["slowfast", "slowfastr50"])
def test_an_own_backbone_counts_those_that_it_builds_on_and_nothing_else_of_the_harness(name: str) -> None:
    files = [SOURCE_ROOT / "benchmark/backbones" / file for file in ("resnet.py", "slowfast.py")]
    assert BACKBONES.entry(name).source_files() == files


def test_an_own_fusion_counts_with_its_file_alone() -> None:
    assert {file.name for name in FUSIONS.names() for file in FUSIONS.entry(name).source_files()} == {"fusion.py"}


def test_line_endings_do_not_change_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.registry.SOURCE_ROOT", tmp_path)
    (tmp_path / "baselines").mkdir()
    file = tmp_path / "baselines" / "a.py"
    file.write_bytes(b"x = 1\n")
    unix = entry("a", "baselines.a").source_digest()
    file.write_bytes(b"x = 1\r\n")
    assert entry("a", "baselines.a").source_digest() == unix
