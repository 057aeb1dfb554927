"""What every worker does, whoever started it: one thread, one task after the other, no exception that gets away."""

from __future__ import annotations

import os
import pickle
import sys
import traceback

from benchmark.executors import Failure
from benchmark.paths import SOURCE_ROOT, data_home, workspace

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
"""Environment of a worker: sums in another order differ in the last bits, and workers share the cores."""


def environment() -> dict[str, str]:
    """Return the environment of workers on other machines: one thread, this driver's sources, workspace and data."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("EQUIPOISE_")}
    paths = [str(SOURCE_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **ONE_THREAD,
        **settings,
        "EQUIPOISE_HOME": str(workspace()),
        "EQUIPOISE_DATA": str(data_home()),
        "PYTHONPATH": os.pathsep.join(path for path in dict.fromkeys(paths) if path),
    }


def answer(function: bytes, task: object) -> bytes:
    """Call a pickled function, which may import torch, on a task; return its value or Failure, pickled."""
    os.environ.update(ONE_THREAD)
    try:
        called = pickle.loads(function)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        return pickle.dumps(called(task))
    except Exception as error:  # noqa: BLE001 - whatever a task raises is its outcome
        return pickle.dumps(Failure(type(error).__name__, str(error), traceback.format_exc()))
