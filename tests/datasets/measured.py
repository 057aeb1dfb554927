"""What preparing costs, measured in a process of its own, which reads its task from its standard input."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmark.paths import SOURCE_ROOT
from tests.datasets.lookalikes import Lookalike


class Cost(NamedTuple):
    """CPU time of a process and those it started, in seconds, and the most memory that it had, in bytes."""

    cpu: float
    memory: int


def cpu_seconds() -> float:
    """Return what this process and all that it has waited for have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in used)


def preparing(lookalike: Lookalike, home: Path, jobs: int) -> Cost:
    """Return what it costs to prepare files that lie below `home`."""
    task = pickle.dumps({"lookalike": lookalike, "home": home, "jobs": jobs})
    command = [sys.executable, "-m", __name__]
    answer = subprocess.run(command, input=task, cwd=SOURCE_ROOT, stdout=subprocess.PIPE, check=True)
    return Cost(*json.loads(answer.stdout))


def main(lookalike: Lookalike, home: Path, jobs: int) -> Cost:
    import torch

    from benchmark.memory import PeakMemory
    from benchmark.preparation import prepare
    from tests.datasets.archives import installed

    (kind, *_) = lookalike.cards
    with installed(lookalike, home), PeakMemory(torch.device("cpu")) as memory:
        before = cpu_seconds()
        prepare(kind.card.name, say=lambda _: None, jobs=jobs)
        used = cpu_seconds() - before
    return Cost(used, memory.peak)


if __name__ == "__main__":
    json.dump(main(**pickle.loads(sys.stdin.buffer.read())), sys.stdout)
