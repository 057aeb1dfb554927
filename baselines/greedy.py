"""Greedy: the modality that learns faster by the others' signal than by its own is cut off from it for some steps.

Wu, Jastrzebski, Cho, Geras: "Characterizing and overcoming the greedy nature of learning in multi-modal deep neural
networks", ICML 2022. The encoders are joined by gates between their stages (MMTM, Vaezi Joze et al., CVPR 2020). The
gates are the bypass by which the others' signal reaches an encoder; its own layers and head are the main path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from baselines.lfm import LateFusion
from benchmark.backbones import Backbone
from benchmark.gradients import NEGLIGIBLE_NORM
from benchmark.method import Intervention, Method, MethodInfo, MethodOptions, option, reading, unimodal_losses

if TYPE_CHECKING:
    from benchmark.context import Context, Forward
    from benchmark.data import Batch
    from benchmark.model import MultimodalModel
    from benchmark.task import Task

RATIO = 4
"""A gate's hidden layer is 2 / RATIO of all channels wide (official)."""


@torch.no_grad()
def learning_speed(weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return mu = sum ||gradient||^2 / sum ||weight||^2 over tensors; one without a gradient counts in neither."""
    pairs = [(weight, gradient) for weight, gradient in zip(weights, gradients, strict=True) if gradient is not None]
    speed: Tensor = torch.nn.utils.get_total_norm([gradient for _, gradient in pairs])
    return (speed / torch.nn.utils.get_total_norm([weight for weight, _ in pairs])) ** 2


def speed_ratios(bypass: Tensor, main: Tensor) -> Tensor:
    """Return log10(B_m / M_m) `(M,)` of summed learning speeds `(M,)` of bypass and main paths, 1e-24 at least."""
    return torch.log10(bypass.clamp_min(NEGLIGIBLE_NORM**2) / main.clamp_min(NEGLIGIBLE_NORM**2))


def leaning(ratios: Sequence[float], threshold: float) -> int | None:
    """Return the modality of the largest ratio, which leans most on the others, if their range exceeds `threshold`."""
    return ratios.index(max(ratios)) if max(ratios) - min(ratios) > threshold else None


@dataclass(frozen=True)
class Schedule:
    """The modality that the next step isolates, None in regular steps, and for how many steps it has been."""

    isolated: int | None = None
    done: int = 0

    def after_step(self, leaning: int | None, window: int) -> Schedule:
        """Return the next state: `window` steps isolate what a regular step found, then comes a regular one."""
        if self.isolated is None:
            return Schedule(leaning)
        return Schedule() if self.done + 1 >= window else replace(self, done=self.done + 1)


def gate_widths(stages: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Return each gate's channels by modality, from the channels after each encoder's stages.

    Gates follow all stages of the shallowest encoder but its first, or its only one, and the others' last stages.
    """
    shallowest = min(map(len, stages.values()))
    depth = max(shallowest - 1, min(shallowest, 1))
    return [{m: widths[k] for m, widths in stages.items()} for k in range(-depth, 0)]


class Gate(nn.Module):
    """MMTM: factors w_m = sigmoid(V_m ReLU(U [s_1; ...; s_M] + u) + v_m) on channels, from all channel means s_m."""

    average: Tensor
    """Mean of all w_m over `passes`, one vector; where it is `borrowed`, that of the first modality for each."""
    passes: Tensor

    def __init__(self, widths: Mapping[str, int], borrowed: bool, in_evaluation: bool) -> None:
        super().__init__()
        self.widths, self.borrowed, self.in_evaluation = dict(widths), borrowed, in_evaluation
        channels = sum(widths.values())
        self.squeeze = nn.Linear(channels, 2 * channels // RATIO)
        self.excite = nn.ModuleDict({m: nn.Linear(2 * channels // RATIO, width) for m, width in widths.items()})
        self.register_buffer("average", torch.zeros(channels))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, means: Mapping[str, Tensor], isolated: str | None = None) -> dict[str, Tensor]:
        """Return factors `(B, c_m)` for means `(B, c_m)`, a missing one's zeros; the `isolated` one's are constant."""
        some = next(iter(means.values()))
        whole = [means[m] if m in means else some.new_zeros(len(some), width) for m, width in self.widths.items()]
        hidden = torch.relu(self.squeeze(torch.cat(whole, dim=1)))
        factors = {m: torch.sigmoid(self.excite[m](hidden)) for m in means}
        if len(means) == len(self.widths) and (self.training or self.in_evaluation):
            current = [factors[next(iter(self.widths)) if self.borrowed else m].detach().mean(0) for m in self.widths]
            self.passes += 1
            self.average += (torch.cat(current) - self.average) / self.passes
        if isolated in factors:
            averages = dict(zip(self.widths, self.average.split(list(self.widths.values())), strict=True))
            # A copy, because a later pass overwrites the buffer in place, perhaps before this one's backward.
            factors[isolated] = averages[isolated].to(factors[isolated].dtype, copy=True).expand(len(some), -1)
        return factors


class GatedModel(LateFusion):
    """Late fusion whose encoders advance in lockstep, with gates after their last stages; evaluation isolates none."""

    gates: nn.ModuleList
    isolated: str | None = None

    def encode(self, inputs: Mapping[str, Tensor], only: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the features `(B, d_m)` of all modalities, or of those in `only`: gates see zeros for the others."""
        encoders = {m: cast(Backbone, self.encoders[m]) for m in (self.modalities if only is None else only)}
        ungated = {m: len(encoder.stage_widths) - len(self.gates) for m, encoder in encoders.items()}
        hidden = {m: inputs[m] for m in encoders}
        for m, encoder in encoders.items():
            for number in range(ungated[m]):
                hidden[m] = encoder.stage(number, hidden[m])
        for k, gate in enumerate(self.gates):
            hidden = {m: encoder.stage(ungated[m] + k, hidden[m]) for m, encoder in encoders.items()}
            means = {m: encoder.squeeze(hidden[m], len(inputs[m])) for m, encoder in encoders.items()}
            factors = gate(means, self.isolated if self.training else None)
            hidden = {m: encoder.excite(hidden[m], factors[m]) for m, encoder in encoders.items()}
        return {m: encoder(hidden[m], first=len(encoder.stage_widths)) for m, encoder in encoders.items()}

    def paths(self, modality: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return a modality's bypass and main parameters; the gates' shared layers belong to every bypass."""
        bypass = [part for gate in cast(list[Gate], self.gates) for part in (gate.squeeze, gate.excite[modality])]
        main = [self.encoders[modality], self.unimodal_heads[modality]]
        return [p for part in bypass for p in part.parameters()], [p for part in main for p in part.parameters()]


class Greedy(Method):
    """Cuts off from the others' signal, for some steps, the modality that learns fastest by it."""

    info = MethodInfo(
        title="Greedy",
        paper="Wu, Jastrzebski, Cho, Geras: Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal "
        "Deep Neural Networks",
        venue="ICML 2022",
        arxiv="2202.05306",
        origin="nyukat/greedy_multimodal_learning @ a190e03755bd8d0883b2c5c0cd7921d2561ce2ee",
        licence="none stated",
        category="imbalance",
        interventions=frozenset({Intervention.FORWARD, Intervention.SCHEDULE}),
        changes=frozenset({"encoders", "fusion", "head"}),
    )

    class Options(MethodOptions):
        """Schedule, and readings of what isolating means."""

        variant: Literal["guided", "random"] = option(
            "guided",
            "`guided`: summed learning speeds name the modality that leans most on the others; our extension for more "
            "than two. `random`, the official control: a step is regular or isolates one, all equally likely.",
        )
        threshold: float = option(0.01, "`guided`: range of log10 speed ratios from which to isolate (official).", ge=0)
        window: int = option(5, "`guided`: steps that a modality is isolated for (official).", ge=1)
        start: float = option(1 / 300, "First epoch that isolates, as a fraction; officially 2nd of 300.", ge=0, le=1)
        average: Literal["own", "first"] = reading(
            "own",
            "Whose factors an isolated modality's constants average. `first`: the first modality's for all, by mistake "
            "(official code); needs equal channels. Default `own`: the stated aim.",
        )
        statistics: Literal["training", "all"] = reading(
            "training",
            "Passes that the averages count. `all`: evaluation, too (official code). Default `training`: evaluating "
            "must not change what is trained.",
        )
        losses: Literal["all", "isolated"] = reading(
            "all",
            "Losses of an isolating step. `isolated`: that modality's alone (authors, in an issue); `all`: their code.",
        )

    options: Options

    def __init__(self, options: Options, task: Task) -> None:
        """Start with a regular step and no learning speeds `(M, 2)` of bypass and main path."""
        super().__init__(options, task)
        self.schedule = Schedule()
        self.speeds = torch.zeros(len(task.modalities), 2)

    @classmethod
    def refuses(cls, options: Options, task: Task) -> str | None:
        """Refuse encoders without stages, too, and averages borrowed between unequal widths."""
        with torch.device("meta"):
            stages = {m: getattr(task.backbone(m, shape), "stage_widths", ()) for m, shape in task.shapes.items()}
        without, gates = [m for m, widths in stages.items() if not widths], gate_widths(stages)
        if without:
            backbones = "use backbones that state stage_widths, such as resnet18 or small"
            return f"gates the maps between an encoder's stages, found none for {', '.join(without)}; {backbones}"
        if options.average == "first" and any(len(set(widths.values())) > 1 for widths in gates):
            return f"average=first needs stages of equal channels, found {gates}; use average=own or one backbone"
        return super().refuses(options, task)

    def build(self) -> MultimodalModel:
        """Build late fusion, then its gates, so that the encoders start as in every other row."""
        model = cast(GatedModel, self.task.build_model(model_class=GatedModel))
        widths = gate_widths({m: cast(Backbone, encoder).stage_widths for m, encoder in model.encoders.items()})
        readings = self.options.average == "first", self.options.statistics == "all"
        model.gates = nn.ModuleList(Gate(by_modality, *readings) for by_modality in widths)
        return model

    def step(self, batch: Batch, ctx: Context) -> None:
        """Train on one batch, isolating the modality that the schedule or chance names."""
        if self.options.variant == "random" and self._started(ctx):
            drawn = int(torch.randint(-1, len(self.task.modalities), (), generator=ctx.generator))
            self.schedule = Schedule(None if drawn < 0 else drawn)
        isolated = self.schedule.isolated
        cast(GatedModel, ctx.model).isolated = None if isolated is None else self.task.modalities[isolated]
        for position, m in enumerate(self.task.modalities):
            ctx.note(f"isolated, {m}", float(position == isolated))
        super().step(batch, ctx)

    def losses(self, forward: Forward, batch: Batch, ctx: Context) -> dict[str, Tensor]:
        """Return the modalities' own cross-entropies."""
        alone = cast(GatedModel, ctx.model).isolated if self.options.losses == "isolated" else None
        return unimodal_losses(forward.only(alone) if alone else forward, batch.labels)

    def modulate_parameters(
        self, gradients: dict[str, dict[str, Tensor]], forward: Forward, batch: Batch, ctx: Context
    ) -> None:
        """Edit nothing: read the learning speeds after a regular step and decide on the next."""
        found = None
        if self.options.variant == "guided" and self.schedule.isolated is None:
            paths = [path for m in self.task.modalities for path in cast(GatedModel, ctx.model).paths(m)]
            speeds = torch.stack([learning_speed(path, [parameter.grad for parameter in path]) for path in paths])
            self.speeds = self.speeds.to(speeds.device, torch.float64) + speeds.view(-1, 2)
            if self._started(ctx):
                found = leaning(speed_ratios(*self.speeds.T).tolist(), self.options.threshold)
        self.schedule = self.schedule.after_step(found, self.options.window)

    def end_epoch(self, ctx: Context) -> None:
        """Note each modality's log10 ratio of summed learning speeds."""
        if self.options.variant == "guided":
            for m, ratio in zip(self.task.modalities, speed_ratios(*self.speeds.T), strict=True):
                ctx.note(f"speed ratio, {m}", ratio)

    def state_dict(self) -> dict[str, Any]:
        """Return the summed learning speeds and the schedule's state."""
        return {"speeds": self.speeds, "isolated": self.schedule.isolated, "done": self.schedule.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore speeds and schedule."""
        self.speeds, self.schedule = state["speeds"], Schedule(state["isolated"], state["done"])

    def _started(self, ctx: Context) -> bool:
        return ctx.epoch / ctx.epochs >= self.options.start
