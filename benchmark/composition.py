"""A method that modulates gradients, wrapped around another one that it did not know of: `host+modulation`.

The composition inherits from both, the modulation first: what it does to gradients goes before the host's, and all it
leaves open (model, losses, schedule, prediction) is the host's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmark.errors import UsageError
from benchmark.method import Intervention, Method, MethodInfo, Passes, Plan
from benchmark.registry import SIGN
from benchmark.task import Task

if TYPE_CHECKING:
    from benchmark.context import Context

_HOSTS_OWN = ("build", "parameters", "batches", "losses", "predict")
_GRADIENTS = ("modulate_features", "modulate_parameters", "step", "combine_losses")


def _overrides(method: type[Method], hook: str) -> bool:
    return getattr(method, hook) is not getattr(Method, hook)


def refusal(host: type[Method], modulation: type[Method]) -> str | None:
    """Return why the second method cannot be wrapped around the first; None when it can."""
    if more := [hook for hook in _HOSTS_OWN if _overrides(modulation, hook)]:
        return f"{modulation.info.title} changes {', '.join(more)}; only what modulates gradients alone can be added"
    if not any(_overrides(modulation, hook) for hook in _GRADIENTS):
        return f"{modulation.info.title} modulates no gradient; there is nothing to add"
    if taken := [hook for hook in _GRADIENTS if _overrides(host, hook)]:
        return f"{host.info.title} has its own {', '.join(taken)}, which leaves no room for a modulation"
    if same := sorted(host.Options.model_fields.keys() & modulation.Options.model_fields.keys()):
        return f"both have options named {', '.join(same)}"
    return None


def _info(host: MethodInfo, modulation: MethodInfo) -> MethodInfo:
    fusions = [found for found in (host.fusions, modulation.fusions) if found is not None]
    limits = [most for most in (host.max_modalities, modulation.max_modalities) if most is not None]
    return replace(
        host,
        title=f"{host.title} {SIGN} {modulation.title}",
        paper=f"{host.paper}; {modulation.paper}",
        interventions=host.interventions | modulation.interventions,
        changes=host.changes | modulation.changes,
        min_modalities=max(host.min_modalities, modulation.min_modalities),
        max_modalities=min(limits, default=None),
        min_domains=max(host.min_domains, modulation.min_domains),
        equal_widths=host.equal_widths or modulation.equal_widths,
        linear_head=host.linear_head or modulation.linear_head,
        fusions=frozenset.intersection(*fusions) if fusions else None,
    )


def composed(host: type[Method], modulation: type[Method]) -> type[Method]:
    """Return the class that trains `host` with its gradients modulated; raises UsageError where they do not match."""
    reason = refusal(host, modulation)
    if reason is not None:
        raise UsageError(f"Method {host.__name__}{SIGN}{modulation.__name__}: {reason}.")

    class Composition(modulation, host):  # type: ignore[valid-type, misc]
        info = _info(host.info, modulation.info)
        noop = None
        official = host.official
        # A modulation brings an adversary only if it is about one.
        adversarial = host.adversarial or Intervention.DOMAIN_ADVERSARY in modulation.info.interventions

        class Options(modulation.Options, host.Options):  # type: ignore[name-defined, misc]
            """Options of both."""

        @classmethod
        def sample_options(cls, task: Task) -> dict[str, Any]:
            return {**host.sample_options(task), **modulation.sample_options(task)}

        def start_epoch(self, ctx: Context) -> None:
            host.start_epoch(self, ctx)
            modulation.start_epoch(self, ctx)

        def end_step(self, ctx: Context) -> None:
            host.end_step(self, ctx)
            modulation.end_step(self, ctx)

        def end_epoch(self, ctx: Context) -> None:
            host.end_epoch(self, ctx)
            modulation.end_epoch(self, ctx)

        def expected_passes(self, plan: Plan) -> Passes:
            own, more = host.expected_passes(self, plan), modulation.expected_passes(self, plan)
            return Passes(own.forward + more.forward - 1, own.backward + more.backward - 1)

        def state_dict(self) -> dict[str, Any]:
            return {"host": host.state_dict(self), "modulation": modulation.state_dict(self)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            host.load_state_dict(self, state["host"])
            modulation.load_state_dict(self, state["modulation"])

    Composition.__name__ = Composition.__qualname__ = f"{host.__name__}{SIGN}{modulation.__name__}"
    Composition.__doc__ = f"{host.info.title} with its gradients modulated by {modulation.info.title}."
    return Composition
