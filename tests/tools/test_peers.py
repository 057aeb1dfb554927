"""Clones of a few lines stand for the peers, and empty files for clips."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from benchmark.errors import CellError, DataError, UsageError
from benchmark.paths import SOURCE_ROOT
from datasets.cremad import CREMAD
from tools.peers.__main__ import main, turn_of
from tools.peers.adapters import Recipe, balance, ogm_ge, write_summary
from tools.peers.clips import HELD_OUT, Clips, card_of, chosen, write_sources
from tools.peers.clones import BALANCE, OGM_GE, Peer, opened
from tools.peers.stand_ins import OneProcess, complete_balancemm, definitions
from tools.peers.table import Figures, Turn, rendered, with_table
from tools.peers.turns import Contestant, EndedError, Watch

SCRIPT = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def train_epoch(model, device, loader):
    for values, labels in loader:
        model(values.to(device)).sum().backward()

def valid(*_):
    raise RuntimeError("evaluated")

def main():
    device = torch.device("cuda:0")
    model = torch.nn.DataParallel(torch.nn.Linear(3, 2).to(device), device_ids=[]).cuda()
    samples = TensorDataset(torch.randn(6, 3), torch.arange(6))
    loader = DataLoader(samples, batch_size=2, num_workers=32, pin_memory=True, prefetch_factor=6)
    for _ in range(2):
        print("no answer")
        train_epoch(model, device, loader)
        valid(model)
    raise ValueError("no epoch left")
"""
CONFIGS = {
    "dataset": {"dataset": {"CREMAD": {"classes": 6, "fps": 2, "audio_path": "None"}}},
    "encoder": {"ResNet18": {"output_dim": 512}},
    "global": {
        "dataloader": {"eff_batch_size": 32, "num_workers": 32},
        "train": {"parameter": {"lr": -1, "base_lr": 0.001}, "optimizer": {"type": "AdamW"}},
    },
    "model": {"model": {"BaseClassifier": {"encoders": {"text": "Transformer_"}, "fusion": "concat"}}},
    "trainer": {"trainer_para": {"base": {"max_epochs": 30}, "OGM": {"alpha": 0.3, "modulation_starts": 10}}},
}


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def clone_of(peer: Peer, folder: Path) -> Path:
    for name in peer.files:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        config = CONFIGS.get(file.stem.removesuffix("_config"))
        file.write_text(SCRIPT if name == "main.py" else yaml.safe_dump(config) if config else "")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "all")
    return folder


def recorded(folder: Path, actors: int = 10) -> Path:
    for name in (f"{1001 + n}_DFA_{emotion}_XX" for n in range(actors) for emotion in ("ANG", "SAD")):
        for path in (f"AudioWAV/{name}.wav", f"VideoFlash/{name}.flv"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(name)
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    return chosen(recorded(tmp_path / "source"), 8, tmp_path / "raw/cremad")


# --- clips ---


def test_as_many_clips_are_linked_as_are_trained_on_and_held_out(clips: Clips) -> None:
    assert {part: len(names) for part, names in clips.parts.items()} == {"train": 8, "val": 6, "test": 6}
    assert len(set(clips.names)) == 8 + HELD_OUT
    assert all((clips.folder / f"VideoFlash/{name}.flv").read_text() == name for name in clips.names)


def test_a_clip_without_a_video_is_not_chosen(tmp_path: Path) -> None:
    source = recorded(tmp_path / "source")
    (source / "VideoFlash/1001_DFA_ANG_XX.flv").unlink()
    with pytest.raises(UsageError, match=r"has 19 clips .* 8 to train on and 12 others are needed"):
        chosen(source, 8, tmp_path / "raw")


def test_our_card_describes_the_clips_that_were_chosen(clips: Clips) -> None:
    write_sources(clips)
    card = card_of(CREMAD.card, clips.folder)
    assert all(source.check(clips.folder).complete for source in card.sources)
    (clips.folder / f"AudioWAV/{clips.names[0]}.wav").unlink()
    assert not card.sources[0].check(clips.folder).complete


# --- clones ---


def test_a_clone_is_known_by_its_commit_and_by_changes_of_its_code(tmp_path: Path) -> None:
    folder = clone_of(OGM_GE, tmp_path / "clone")
    (folder / "notes.txt").write_text("of mine")
    clone = opened(OGM_GE, folder)
    assert (len(clone.commit), clone.changed) == (40, False)
    (folder / "main.py").write_text("1")
    assert opened(OGM_GE, folder).changed


def test_a_folder_that_is_no_clone_of_the_peer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no git clone with a commit\. Give --ogm-ge .*GeWu-Lab/OGM-GE_CVPR2022"):
        opened(OGM_GE, tmp_path)
    other = clone_of(BALANCE, tmp_path / "balance")
    with pytest.raises(UsageError, match=r"it lacks main\.py\. Give --ogm-ge"):
        opened(OGM_GE, other)
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init")
    inside = outer / "clone"
    for name in OGM_GE.files:
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_text("")
    git(outer, "add", ".")
    git(outer, "commit", "-m", "all")
    with pytest.raises(UsageError, match=r"it is a folder inside .*outer"):
        opened(OGM_GE, inside)


# --- adapters ---


def test_ogm_ge_gets_the_clips_as_its_lists_and_its_clone_is_left_alone(tmp_path: Path, clips: Clips) -> None:
    clone = opened(OGM_GE, clone_of(OGM_GE, tmp_path / "clone"))
    arguments = ogm_ge(clone, clips, Recipe(batch=4, frames=3), tmp_path / "copy")
    lines = (tmp_path / "copy/data/CREMAD/train.csv").read_text().splitlines()
    assert lines == [f"{name},{name.split('_')[2]}" for name in clips.parts["train"]]
    given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert arguments[0] == "--train"
    assert (given["--batch_size"], given["--fps"], given["--modulation"]) == ("4", "3", "OGM_GE")
    assert (Path(given["--audio_path"]) / f"{clips.names[0]}.wav").exists()
    assert (tmp_path / "copy/main.py").read_text() == SCRIPT
    assert not (clone.folder / "data/CREMAD/train.csv").exists()


def test_balancebenchmark_gets_the_same_recipe_in_its_configuration(tmp_path: Path, clips: Clips) -> None:
    copy = tmp_path / "copy"
    clone = opened(BALANCE, clone_of(BALANCE, tmp_path / "clone"))
    arguments = balance(clone, clips, Recipe(batch=4, frames=3), copy)
    found = {name: yaml.safe_load((copy / f"configs/{name}_config.yaml").read_text()) for name in CONFIGS}
    data = found["dataset"]["dataset"]["CREMAD"]
    assert (data["fps"], data["classes"]) == (3, 6)
    assert data["visual_path"] == f"{clips.folder}/Image-03-FPS/"
    assert Path(data["test_txt"]).read_text().splitlines()[0].split(",")[0] == clips.parts["test"][0]
    assert found["global"]["dataloader"] == {"eff_batch_size": 4, "num_workers": 32}
    assert found["global"]["train"]["optimizer"]["type"] == "SGD"
    assert found["model"]["model"]["BaseClassifier"]["encoders"] == {"audio": "ResNet18", "visual": "ResNet18"}
    assert found["trainer"]["trainer_para"]["OGM"] == {"alpha": 0.3, "method": "OGM_GE", "modulation_starts": 0}
    assert arguments[:2] == ["--trainer", "OGMTrainer"]
    assert opened(BALANCE, clone.folder).changed is False


def test_the_extraction_of_frames_finds_every_clip_in_a_table(clips: Clips) -> None:
    write_summary(clips)
    lines = (clips.folder / "processedResults/summaryTable.csv").read_text().splitlines()
    assert lines == ["FileName", *clips.names]


# --- stand-ins ---


def test_a_script_gives_its_classes_without_being_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import math\nclass Kept:\n    side = math.floor(2.5)\nraise SystemExit('run')\n")
    assert definitions(script)["Kept"].side == 2


def test_a_parallel_module_is_the_module_where_there_is_no_device() -> None:
    class Doubled(OneProcess):
        """Goes through the steps of `DataParallel` itself, as BalanceBenchmark's subclass does."""

        def forward(self, *inputs: torch.Tensor, **options: object) -> torch.Tensor:
            given, own = self.scatter(inputs[0], options, self.device_ids)
            replicas = self.replicate(self.module, self.device_ids)
            result: torch.Tensor = self.gather(self.parallel_apply(replicas, given, own), self.output_device)
            return 2 * result

    module, values = nn.Linear(3, 2), torch.randn(4, 3)
    assert torch.equal(OneProcess(module)(values), module(values))
    assert torch.equal(Doubled(module, device_ids=[])(values), 2 * module(values))


def test_the_names_that_balancebenchmark_lacks_are_those_that_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "balancemm/models"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    text = "class BaseClassifierModel:\n    def resnet_process(self):\n        return 18\n"
    (package / "avclassify_model.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    complete_balancemm()
    from models.avclassify_model import BaseClassifierModel  # type: ignore[import-not-found]

    assert BaseClassifierModel().resnet() == 18


# --- turns ---


def test_the_first_epoch_has_one_batch_and_the_next_ones_all() -> None:
    watch = Watch()

    def train() -> int:
        return sum(len(batch) for batch in watch.timed([[1, 2], [3], [4]], len))

    counts = [watch.epoch(train) for _ in range(3)]
    assert [(result, answer["clips"]) for result, answer in counts] == [(2, 2), (4, 4), (4, 4)]
    assert all(0 <= answer["input"] <= answer["epoch"] for _, answer in counts)


def test_a_script_that_asks_for_a_gpu_trains_on_the_cpu_in_turns(tmp_path: Path) -> None:
    clone = clone_of(OGM_GE, tmp_path / "clone")
    command = [sys.executable, "-m", "tools.peers.launch", "ogm_ge", str(clone)]
    log = tmp_path / "log"
    with Contestant("the fake", command, SOURCE_ROOT, log, CUDA_VISIBLE_DEVICES="") as contestant:
        assert contestant.hello["torch"] == torch.__version__
        assert contestant.turn()["clips"] == 2
        turn = turn_of(contestant, 6)
        assert 0 < turn.input < turn.epoch
        with pytest.raises(EndedError, match=r"the fake ended: ValueError: no epoch left\. All of it is in .*log"):
            contestant.turn()
    assert log.read_text().count("no answer") == 2


def test_other_clips_than_all_are_an_error(tmp_path: Path) -> None:
    contestant = SimpleNamespace(
        name="OGM-GE", log=tmp_path / "log", turn=lambda: {"epoch": 1.0, "input": 0.5, "clips": 95}
    )
    with pytest.raises(CellError, match=r"OGM-GE trained on 95 clips and not on 96: .* fewer than 3 frames"):
        turn_of(contestant, 96)  # type: ignore[arg-type]


# --- table and command ---


def figures(title: str, factor: float) -> Figures:
    turns = [Turn(epoch=factor * epoch, input=factor, clips=100) for epoch in (10.0, 30.0, 20.0)]
    return Figures(title, turns, prepared=0.01 * factor)


def test_ratios_are_to_the_first_row_and_figures_are_per_clip() -> None:
    table = rendered([figures("Equipoise", 1.0), figures("Other", 1.5)], {"Device": "a CPU"})
    first, second = (line.split("|")[1:-1] for line in table.splitlines()[2:4])
    assert [cell.strip() for cell in first] == ["Equipoise", "10.00", "190.0", "200.0", "10.0"]
    assert [cell.strip() for cell in second] == [
        "Other",
        "15.00 (1.50x)",
        "285.0 (1.50x)",
        "300.0 (1.50x)",
        "15.0 (1.50x)",
    ]
    assert table.splitlines()[-1] == "- Device: a CPU"


def test_a_ratio_is_the_median_over_rounds_and_not_that_of_medians() -> None:
    ours = Figures("Equipoise", [Turn(10.0, 1.0, 100), Turn(20.0, 1.0, 100), Turn(30.0, 1.0, 100)], 1.0)
    other = Figures("Other", [Turn(30.0, 1.0, 100), Turn(20.0, 1.0, 100), Turn(30.0, 1.0, 100)], 1.0)
    assert "300.0 (1.00x)" in rendered([ours, other], {})


def test_the_page_gets_the_table_between_its_marks() -> None:
    page = "before\n<!-- table: peers -->\nold\n<!-- end table -->\nafter\n"
    new = "before\n<!-- table: peers -->\n\nnew\n\n<!-- end table -->\nafter\n"
    assert with_table(page, "new") == with_table(new, "new") == new
    with pytest.raises(DataError, match="lacks <!-- table: peers -->"):
        with_table("before", "new")


def test_the_committed_page_has_a_table_of_every_contestant() -> None:
    page = (SOURCE_ROOT / "docs/performance.md").read_text()
    assert with_table(page, "x") != page
    assert all(f"| {title}" in page for title in ("Equipoise", OGM_GE.title, BALANCE.title))


def test_a_wrong_call_is_one_sentence_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    clone = str(clone_of(OGM_GE, tmp_path / "clone"))
    call = [str(tmp_path), "--ogm-ge", clone, "--balance", clone]
    assert main([*call, "--clips", "90"]) == 2
    assert "90 clips are no whole number of batches of 16" in capsys.readouterr().err
    assert main([*call, "--clips", "96"]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {clone} is no clone of GeWu-Lab/BalanceBenchmark: it lacks")
    assert main(call[:3]) == 2
    assert "Missing option '--balance'" in capsys.readouterr().err
    other = str(clone_of(BALANCE, tmp_path / "other"))
    assert main([*call[:4], other, "--clips", "96"]) == 2
    assert "has 0 clips with a file in AudioWAV and one in VideoFlash; 96 to train on" in capsys.readouterr().err
    assert not (tmp_path / "temporary").exists()
