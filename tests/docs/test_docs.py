"""The documentation is executed as written, and what it mentions exists."""

from __future__ import annotations

import fnmatch
import os
import re
import site
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmark import manual
from benchmark.cli import cli
from benchmark.conformance import CHECKS
from benchmark.context import Context
from benchmark.dataset import Dataset, DatasetCard, Source
from benchmark.fetch import fetch
from benchmark.lightning import BalancedModule
from benchmark.method import Method
from benchmark.paths import SOURCE_ROOT
from benchmark.preparation import PreparedWriter
from benchmark.protocol import Optimizer, Protocol
from benchmark.statistics import smallest_detectable_difference
from tests.docs.markdown import Command, blocks, commands, difference, files, links, pages, paths

PAGES = pages(SOURCE_ROOT)
README = (SOURCE_ROOT / "README.md").read_text()
METHOD_PAGE = (SOURCE_ROOT / "docs/adding-a-method.md").read_text()
DATASET_PAGE = (SOURCE_ROOT / "docs/adding-a-dataset.md").read_text()
PROTOCOL_PAGE = (SOURCE_ROOT / "docs/protocol.md").read_text()

every_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(SOURCE_ROOT)) for page in PAGES])


class Reader:
    """Somebody with a clone of the project, its environment and an empty folder for a package of their own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "package"
        self.home.mkdir()
        environment = folder / "venv"
        # An environment that sees ours, so that a package is installed without touching ours.
        venv.create(environment, symlinks=True)
        python = environment / "bin/python"
        packages = environment / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        ours = [SOURCE_ROOT, *site.getsitepackages()]
        (packages / "ours.pth").write_text("".join(f"import site; site.addsitedir({str(path)!r})\n" for path in ours))
        script = environment / "bin/equipoise"
        script.write_text(f'#!/bin/sh\nexec "{python}" -m benchmark "$@"\n')
        script.chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))},
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def write(self, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            file = self.home / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def follow(self, command: Command) -> None:
        """Give a command as the page shows it and compare the output."""
        result = subprocess.run(
            command.line, shell=True, cwd=self.home, env=self.environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command.line}\n{result.stdout}{result.stderr}"
        fault = difference(command.output, result.stdout, measured=command.line.split()[1] in ("run", "table"))
        assert not fault, f"{command.line}\n{fault}"


@pytest.mark.parametrize(
    ("page", "results"), [(METHOD_PAGE, 15), (DATASET_PAGE, 25)], ids=["adding-a-method", "adding-a-dataset"]
)
def test_the_worked_example_runs_as_written(page: str, results: int, tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.write(files(page))
    for command in commands(page):
        reader.follow(command)
    assert len(list((reader.home / "results/cells").rglob("*.json"))) == results


# --- in your own training loop ---

WIDTH, CLASSES = 16, 3


class Encoder(nn.Linear):
    """A module that states its number of features as `width`, as the README asks for."""

    width = WIDTH


def readers_names() -> dict[str, Any]:
    """What the README's blocks expect their reader to have, on tiny data."""
    torch.manual_seed(0)
    labels = torch.arange(24) % CLASSES
    inputs = {name: torch.randn(24, size) + labels[:, None] for name, size in (("audio", 5), ("video", 7))}
    encoders = nn.ModuleDict({"audio": Encoder(5, WIDTH), "video": Encoder(7, WIDTH)})
    head = nn.Linear(2 * WIDTH, CLASSES)
    optimizer = torch.optim.SGD([*encoders.parameters(), *head.parameters()], lr=0.01, momentum=0.9)
    batches = [({name: values[i : i + 8] for name, values in inputs.items()}, labels[i : i + 8]) for i in (0, 8, 16)]
    return {
        "inputs": inputs,
        "labels": labels,
        "encoders": encoders,
        "head": head,
        "optimizer": optimizer,
        "loader": DataLoader(batches, batch_size=None),  # type: ignore[arg-type]
    }


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


PYTHON_BLOCKS = blocks(README, "python")


def test_the_readme_has_two_blocks_of_code_of_less_than_fifteen_lines() -> None:
    assert [len(block.splitlines()) < 15 for block in PYTHON_BLOCKS] == [True, True]


# What the reader sees too: Lightning says which logger it has chosen.
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX` has been removed")
def test_the_block_for_the_trainer_runs_and_moves_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = readers_names()
    exec(PYTHON_BLOCKS[0], names)
    trained = weights(names["module"].model.encoders)
    assert all(not torch.equal(value, trained[name]) for name, value in names["encoders"].state_dict().items())


def test_the_block_for_a_bare_loop_gives_the_weights_of_the_trainer(tmp_path: Path) -> None:
    from pytorch_lightning import Trainer

    names = readers_names()
    recipe = Protocol(epochs=1, batch_size=8, optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=0.0))
    module = BalancedModule("rgm", names["encoders"], CLASSES, recipe)
    names["head"].load_state_dict(module.model.head.state_dict())
    before = weights(names["encoders"])
    exec(PYTHON_BLOCKS[1], names)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path
    )
    trainer.fit(module, train_dataloaders=names["loader"])
    for bare, ours in ((names["encoders"], module.model.encoders), (names["head"], module.model.head)):
        torch.testing.assert_close(weights(bare), weights(ours), rtol=0, atol=0)
    assert all(not torch.equal(value, before[name]) for name, value in weights(names["encoders"]).items())


# --- pages and code agree ---


def test_generated_pages_are_up_to_date() -> None:
    stale = [str(file.relative_to(SOURCE_ROOT)) for file in manual.outdated()]
    assert stale == [], "run `python -m benchmark.manual`"


def first_column(page: str, header: str) -> list[str]:
    """Return the first cells of the table whose header row starts with `header`."""
    table = page.partition(f"| {header} |")[2].partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def test_the_table_of_checks_names_every_check() -> None:
    named = [name for cell in first_column(METHOD_PAGE, "check") for name in cell.split(", ")]
    assert named == list(CHECKS)


def test_the_table_of_hooks_names_every_hook_of_the_contract() -> None:
    named = re.findall(r"(\w+)\(", " ".join(first_column(METHOD_PAGE, "hook")))
    contract = {name for name, value in vars(Method).items() if callable(value) or isinstance(value, classmethod)}
    assert set(named) == contract - {"Options", "__init__"}


def test_everything_said_of_the_context_is_there() -> None:
    named = set(re.findall(r"\bctx\.(\w+)", METHOD_PAGE))
    assert named <= {*vars(Context), "generator", "epochs", "model"}


def test_the_sources_shown_for_a_dataset_make_a_card_and_are_found_in_a_mirror(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(next(block for block in blocks(DATASET_PAGE, "python") if "Source(" in block), names)
    sources: tuple[Source, ...] = names["sources"]

    class Recordings(Dataset):
        card = DatasetCard(
            name="recordings",
            title="",
            licence="",
            citation="",
            shapes={},
            classes=(),
            splits={"official": ""},
            default_split="official",
            sources=sources[:1],
        )

        def prepare(self, raw: Path, out: PreparedWriter) -> None:
            raise NotImplementedError

    assert [bool(source.checksum or source.manifest or source.suffix) for source in sources] == [True] * 4
    mirror = tmp_path / "mirror"
    (mirror / "recordings").mkdir(parents=True)
    (mirror / "recordings/recordings.zip").write_bytes(b"test")
    assert [found.complete for found in fetch(Recordings, tmp_path / "raw", mirror)] == [True]


def test_the_smallest_detectable_differences_of_the_protocol_page_are_right() -> None:
    quoted = dict(re.findall(r"\| (\d+) \| ([\d.]+) SD \|", PROTOCOL_PAGE))
    assert len(quoted) >= 3
    assert quoted == {n: f"{smallest_detectable_difference(1.0, int(n)):.2f}" for n in quoted}


# --- what pages mention exists ---


def written_by_pipelines() -> list[str]:
    """Outputs and references of the DVC stages; some exist only after a run."""
    found = []
    for file in (SOURCE_ROOT / "dvc.yaml", *SOURCE_ROOT.glob("datasets/*/dvc.yaml")):
        for stage in yaml.safe_load(file.read_text())["stages"].values():
            stage = stage.get("do", stage)
            outs = [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]]
            found += [path.replace("${key}", "*") for path in [*outs, *stage["deps"]]]
    return found


@every_page
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    dead = [link for link in links(page.read_text()) if not (page.parent / link).exists()]
    assert dead == []


@every_page
def test_every_file_that_is_mentioned_exists(page: Path) -> None:
    text = page.read_text()
    own, written = files(text), written_by_pipelines()

    def exists(path: str) -> bool:
        here = any(any(folder.glob(path.rstrip("/"))) for folder in (SOURCE_ROOT, page.parent))
        later = any(fnmatch.fnmatch(known, path) or known.startswith(f"{path.rstrip('/')}/") for known in written)
        return here or later or path in own

    assert [path for path in paths(text) if not exists(path)] == []


@every_page
def test_every_command_that_is_mentioned_exists(page: Path) -> None:
    text = page.read_text()
    environments = set(re.findall(r"^\[testenv:(\w+)\]", (SOURCE_ROOT / "tox.ini").read_text(), re.MULTILINE))
    asked = {name for names in re.findall(r"tox (?:run )?-e ([\w,]+)", text) for name in names.split(",")}
    assert asked <= environments
    assert set(re.findall(r"(?:^|[`$] ?)equipoise ([a-z]+)", text, re.MULTILINE)) <= set(cli.commands)


def test_no_page_is_forgotten() -> None:
    found = {str(page.relative_to(SOURCE_ROOT)) for page in PAGES}
    assert found >= {
        "README.md",
        "CONTRIBUTING.md",
        "docs/protocol.md",
        "docs/methods.md",
        "results/published/README.md",
    }


def test_what_the_pages_are_checked_for_is_found() -> None:
    text = "[here](gone.md#part) [there](https://example.org) `benchmark/gone.py` `results/` `1.5`\n```sh\n`x.py`\n```"
    assert (links(text), paths(text)) == (["gone.md"], ["benchmark/gone.py", "results/"])
    assert difference("a 1.00\n...\nb\n", "a 1.00\nx\ny\nb\n") == ""
    assert difference("a 1.00\n", "a 1.01\n").startswith("numbers")
    assert difference("a 1.00\n", "b 1.00\n").startswith("shown")
    assert difference("| **96.0** ≈ |\n", "| 96.9     |\n", measured=True) == ""
    assert difference("96.0 ‡\n", "96.0\n", measured=True).startswith("shown")
    assert difference("96.0\n", "90.0\n", measured=True).startswith("numbers")
