"""Base: joint training whose encoders also learn to hide the domain, by gradient reversal.

Ganin, Lempitsky: "Unsupervised Domain Adaptation by Backpropagation", ICML 2015, on source domains alone: the model
that GMP and the balancing methods of its tables start from (GMP, Eqs. 1 to 3).
"""

from __future__ import annotations

from typing import ClassVar

from baselines.joint import Joint
from benchmark.method import Intervention, MethodInfo


class Base(Joint):
    """Joint training with a domain discriminator on the fused vector, whose gradient is reversed for the encoders."""

    info = MethodInfo(
        title="Joint training with domain adversary",
        paper="Ganin, Lempitsky: Unsupervised Domain Adaptation by Backpropagation",
        venue="ICML 2015",
        arxiv="1409.7495",
        origin="this suite",
        licence="Apache-2.0",
        category="reference",
        interventions=frozenset({Intervention.DOMAIN_ADVERSARY}),
        changes=frozenset({"encoders", "fusion", "head"}),
        min_modalities=1,
        min_domains=2,
    )
    noop = None
    adversarial: ClassVar[bool] = True
