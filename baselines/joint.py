"""Joint training: one cross-entropy on the fused logits. The reference of every table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from benchmark.method import Method, MethodInfo


class Joint(Method):
    """Plain training of all modalities with one fused loss; over several domains, empirical risk minimisation."""

    info = MethodInfo(
        title="Joint training",
        paper="No method: the fused cross-entropy alone",
        venue="",
        arxiv=None,
        origin="this suite",
        licence="Apache-2.0",
        category="reference",
        interventions=frozenset(),
        changes=frozenset(),
        min_modalities=1,
    )
    noop: ClassVar[Mapping[str, object] | None] = {}
    adversarial: ClassVar[bool] = False
