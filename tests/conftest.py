"""What every test shares: one thread, and no setting of the person who runs them."""

from __future__ import annotations

import os
import sys

import pytest

# Read when torch and BLAS load, here and in the processes that tests start: sums in another order differ in
# the last bits, and the workers of pytest-xdist share the cores.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

for name in [name for name in os.environ if name.startswith("EQUIPOISE_")]:
    del os.environ[name]


RERUNS = 2
"""At a limit of time: what else the machine does disturbs a measure, and what is too slow is so every time."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timing"):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.flaky(reruns=RERUNS))


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Undo what an earlier test may have set; a test that does not use torch does not import it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
