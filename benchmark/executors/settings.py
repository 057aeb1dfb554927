"""What `executors:` in the workspace's params.yaml says about a cluster."""

from __future__ import annotations

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt

from benchmark.errors import UsageError
from benchmark.paths import PARAMS_FILE, workspace
from benchmark.protocol import Frozen, validated


class Slurm(Frozen):
    """How to ask SLURM for an array task.

    `minutes` is its time limit, after which it is queued again with what is left; `cells` run side by side in it, on
    one core each; `gpus` None is one where the partition has any. `sbatch` holds whatever options the cluster wants
    (`partition: gpu`, `account: vision`, `mem: 16G`), `setup` the shell lines to run first (`module load cuda`).
    """

    minutes: PositiveInt = 240
    cells: PositiveInt = 1
    gpus: NonNegativeInt | None = None
    sbatch: dict[str, bool | int | str] = Field(default_factory=dict)
    setup: tuple[str, ...] = ()


def slurm() -> Slurm:
    """Return the workspace's settings for SLURM; raises UsageError for a wrong one."""
    file = workspace() / PARAMS_FILE
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        found = (content.get("executors") or {}).get("slurm") or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as error:
        raise UsageError(f"`executors:` in {file} cannot be read: {' '.join(str(error).split())}") from None
    return validated(Slurm, found, f"`executors: slurm:` in {file}")
