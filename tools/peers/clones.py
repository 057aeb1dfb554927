"""The peers, and clones of them that a user has: what makes one, which commit it is at, and a copy to run."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmark.errors import UsageError

CODE = ("*.py", "*.yaml")


@dataclass(frozen=True)
class Peer:
    """Somebody else's code: `files` are those that we run or write, and so have to be there."""

    key: str
    title: str
    repository: str
    option: str
    files: tuple[str, ...]


OGM_GE = Peer(
    "ogm_ge",
    "OGM-GE, official script",
    "GeWu-Lab/OGM-GE_CVPR2022",
    "--ogm-ge",
    ("main.py", "dataset/CramedDataset.py", "data/CREMAD/video_preprocessing.py"),
)
BALANCE = Peer(
    "balance",
    "BalanceBenchmark",
    "GeWu-Lab/BalanceBenchmark",
    "--balance",
    (
        "balancemm/__main__.py",
        "balancemm/trainer/OGM_trainer.py",
        "balancemm/datasets/cremad_dataset.py",
        *(f"configs/{name}_config.yaml" for name in ("dataset", "encoder", "global", "model", "trainer")),
    ),
)


@dataclass(frozen=True)
class Clone:
    """A peer's clone, its commit (hex), and whether its code differs from that."""

    peer: Peer
    folder: Path
    commit: str
    changed: bool

    def copy(self, to: Path) -> Path:
        """Copy the code to a folder, whose configuration may be written; the clone itself stays as it is."""
        for path in _git(self.folder, "ls-files", "-z", "--", *CODE).split("\0"):
            if path and (self.folder / path).is_file():
                (to / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / path, to / path)
        return to


def opened(peer: Peer, folder: Path) -> Clone:
    """Return a user's clone of a peer; raises UsageError where it is none."""
    how = f"Give {peer.option} the folder of a clone of https://github.com/{peer.repository}."
    try:
        top = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = bool(_git(folder, "status", "--porcelain", "--untracked-files=no", "--", *CODE))
    except (OSError, subprocess.CalledProcessError):
        raise UsageError(f"{folder} is no git clone with a commit. {how}") from None
    missing = [file for file in peer.files if not (folder / file).is_file()]
    if missing or top != folder.resolve():
        what = f"lacks {missing[0]}" if missing else f"is a folder inside {top}"
        raise UsageError(f"{folder} is no clone of {peer.repository}: it {what}. {how}")
    return Clone(peer, folder, commit, changed)


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout
