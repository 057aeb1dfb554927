"""What each peer is given so that it trains on the same clips in the same way: files, configuration, arguments.

Written is what its users write too. The recipe is one that all three have: ResNet-18, concatenation, SGD with momentum
0.9 and weight decay 1e-4, learning rate 0.001, OGM-GE with alpha 0.8 from the first epoch on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.peers.clips import Clips, write_list
from tools.peers.clones import Clone
from tools.peers.launch import SPECTROGRAMS

ALPHA, RATE, MOMENTUM, DECAY = 0.8, 0.001, 0.9, 1e-4
FOREVER = 40
"""Epochs that a peer is to train, more than it is given turns; OGM-GE's script modulates up to its 50th."""


@dataclass(frozen=True)
class Recipe:
    """What all train with; `frames` per clip, and per second of the extracted ones."""

    batch: int
    frames: int


def write_summary(clips: Clips) -> None:
    """Write CREMA-D's table of clips, in which the extraction of frames looks the names up."""
    file = clips.folder / "processedResults/summaryTable.csv"
    file.parent.mkdir()
    file.write_text("".join(f"{name}\n" for name in ("FileName", *clips.names)), encoding="utf-8")


def images(clips: Clips, recipe: Recipe) -> Path:
    """Return where the extracted frames are."""
    return clips.folder / f"Image-{recipe.frames:02d}-FPS"


def ogm_ge(clone: Clone, clips: Clips, recipe: Recipe, copy: Path) -> list[str]:
    """Write OGM-GE's lists into a copy of it; returns the arguments of its script."""
    clone.copy(copy)
    for part in ("train", "test"):
        write_list(copy / f"data/CREMAD/{part}.csv", clips.parts[part])
    options = {
        "dataset": "CREMAD",
        "modulation": "OGM_GE",
        "fusion_method": "concat",
        "alpha": ALPHA,
        "fps": recipe.frames,
        "use_video_frames": recipe.frames,
        "audio_path": clips.folder / "AudioWAV",
        "visual_path": clips.folder,
        "batch_size": recipe.batch,
        "learning_rate": RATE,
        "epochs": FOREVER,
        "ckpt_path": copy / "ckpt",
        "gpu_ids": 0,
    }
    return ["--train", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


def balance(clone: Clone, clips: Clips, recipe: Recipe, copy: Path) -> list[str]:
    """Write BalanceBenchmark's lists and configuration into a copy of it; returns the arguments of its command."""
    clone.copy(copy)
    lists = {part: copy / f"{part}.txt" for part in ("train", "test")}
    for part, file in lists.items():
        write_list(file, clips.parts[part])

    def dataset(config: Any) -> None:
        # It joins folder and name without a separator.
        config["dataset"]["CREMAD"] |= {
            "fps": recipe.frames,
            "visual_path": f"{images(clips, recipe)}{os.sep}",
            "audio_path": f"{clips.folder / SPECTROGRAMS}{os.sep}",
            "train_txt": str(lists["train"]),
            "test_txt": str(lists["test"]),
        }

    def model(config: Any) -> None:
        config["model"]["BaseClassifier"] |= {
            "encoders": {"audio": "ResNet18", "visual": "ResNet18"},
            "fusion": "concat",
            "modality_size": 512,
        }

    def trainer(config: Any) -> None:
        config["trainer_para"]["base"]["max_epochs"] = FOREVER
        config["trainer_para"]["OGM"] |= {"method": "OGM_GE", "modulation_starts": 0}

    def everything(config: Any) -> None:
        config["dataloader"]["eff_batch_size"] = recipe.batch
        config["train"]["parameter"]["lr"] = RATE
        config["train"]["optimizer"] = {"type": "SGD", "momentum": MOMENTUM, "weight_decay": DECAY}

    changes: Mapping[str, Callable[[Any], None]] = {
        "dataset": dataset,
        "model": model,
        "trainer": trainer,
        "global": everything,
    }
    for name, change in changes.items():
        file = copy / f"configs/{name}_config.yaml"
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        change(config)
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    options = ("--trainer", "OGMTrainer", "--dataset", "CREMAD", "--model", "BaseClassifier")
    return [*options, "--alpha", str(ALPHA), "--device", "0"]
