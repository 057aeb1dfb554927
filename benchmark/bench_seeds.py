"""`python -m benchmark.bench_seeds`: joint training of five seeds in one graph, against one seed after another.

Two ways to put five models into one graph are measured, both with bare PyTorch loops on either side: `torch.func`'s
`vmap` over stacked parameters, and one model whose channels are those of all five, in which grouped convolutions and
batched products keep the seeds apart. The suite uses neither; docs/performance.md says why.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional

from benchmark import seeding
from benchmark.bench import RESNET, SMALL, Workload, clock, ratio
from benchmark.data import Batch, Part
from benchmark.fusion import Concat
from benchmark.method import REFERENCE, Method
from benchmark.model import MultimodalModel
from benchmark.registry import METHODS
from benchmark.training import initialised

State = dict[str, Tensor]

SEEDS = 5
ROUNDS = {"small": 7, "resnet18": 3}
LEFT_ALONE = ("step", "batches", "modulate_features", "modulate_parameters", "start_epoch", "end_step", "end_epoch")
"""Hooks that see or keep one run's numbers batch by batch: a method with one of them has to be written anew."""


class JoinedLinear(nn.Module):
    """The linear layers of all seeds: `(B, S * in)` to `(B, S * out)`, one batched product."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().t() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, values: Tensor) -> Tensor:
        """Map every seed's features by its own weights."""
        by_seed = values.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        return torch.baddbmm(self.bias, by_seed, self.weight).transpose(0, 1).flatten(1)


class JoinedConcat(nn.Module):
    """Concatenation of the features of all modalities within each seed."""

    def __init__(self, seeds: int) -> None:
        super().__init__()
        self.seeds = seeds

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return `(B, S * D)` from features `(B, S * d_m)`."""
        return torch.cat([value.unflatten(1, (self.seeds, -1)) for value in features.values()], dim=2).flatten(1)


def joined(modules: Sequence[nn.Module]) -> nn.Module:
    """Return one module with the channels of `modules`, seed by seed: what they compute side by side.

    Right where all that is between the layers works on each channel alone, as in `small` and `resnet18`.
    """
    first, count = modules[0], len(modules)
    if isinstance(first, nn.Linear):
        return JoinedLinear(modules)  # type: ignore[arg-type]  # all are of the first one's class
    if isinstance(first, Concat):
        return JoinedConcat(count)
    result = copy.deepcopy(first)
    for name, _ in first.named_children():
        setattr(result, name, joined([module.get_submodule(name) for module in modules]))
    for name, _ in first.named_parameters(recurse=False):
        setattr(result, name, nn.Parameter(torch.cat([module.get_parameter(name).detach() for module in modules])))
    for name, value in first.named_buffers(recurse=False):
        if value.ndim:
            setattr(result, name, torch.cat([module.get_buffer(name) for module in modules]))
    if isinstance(result, nn.Conv2d):
        result.groups *= count
    return result


class Trial:
    """Joint training of `SEEDS` seeds of one workload in bare loops: same data, models and optimiser each way."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.method: Method = METHODS.load(REFERENCE)(METHODS.load(REFERENCE).Options(), work.task())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.parts = {name: part.to(self.device) for name, part in work.parts().items()}

    def models(self) -> list[MultimodalModel]:
        """Return every seed's initialised model."""
        return [initialised(self.method, seed).to(self.device).train() for seed in range(SEEDS)]

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of all epochs in the seed's order."""
        train: Part = self.parts["train"]
        for epoch in range(self.work.epochs):
            yield from train.batches(self.work.batch_size, order=seeding.generator(seed, "order", "", epoch, 0))

    def side_by_side(self) -> Iterator[list[Batch]]:
        """Yield the batches of all seeds step by step."""
        return zip(*(self.batches(seed) for seed in range(SEEDS)), strict=True)  # type: ignore[return-value]

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the workload's optimiser."""
        recipe = self.work.protocol().optimizer
        momentum, decay = recipe.momentum, recipe.weight_decay
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=momentum, weight_decay=decay, foreach=True)

    def one_by_one(self) -> list[MultimodalModel]:
        """Train one seed after another."""
        models = self.models()
        for seed, model in enumerate(models):
            optimizer = self.optimizer(list(model.parameters()))
            for batch in self.batches(seed):
                functional.cross_entropy(model.classify(model.encode(batch.inputs)), batch.labels).backward()
                optimizer.step()
                optimizer.zero_grad()
        return models

    def in_one_graph(self) -> nn.Module:
        """Train one model that has the channels of all seeds, on the sum of their losses."""
        model = joined(self.models())
        assert isinstance(model, MultimodalModel)
        optimizer = self.optimizer(list(model.parameters()))
        for batches in self.side_by_side():
            inputs = {name: torch.cat([batch.inputs[name] for batch in batches], 1) for name in model.modalities}
            logits = model.classify(model.encode(inputs)).unflatten(1, (SEEDS, -1))
            labels = torch.stack([batch.labels for batch in batches], 1)
            functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(0).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    def mapped(self) -> dict[str, Tensor]:
        """Train stacked parameters by the gradients that `vmap` finds for all seeds at once."""
        models = self.models()
        names = models[0].modalities
        parameters, buffers = stack_module_state(models)
        skeleton = _Classifier(models[0])

        def loss(
            values: dict[str, Tensor], kept: dict[str, Tensor], inputs: dict[str, Tensor], labels: Tensor
        ) -> Tensor:
            state = {f"model.{name}": value for name, value in {**values, **kept}.items()}
            return functional.cross_entropy(functional_call(skeleton, state, (inputs,)), labels)

        gradients = vmap(grad(loss))
        optimizer = self.optimizer(list(parameters.values()))
        for batches in self.side_by_side():
            inputs = {name: torch.stack([batch.inputs[name] for batch in batches]) for name in names}
            labels = torch.stack([batch.labels for batch in batches])
            detached = {name: value.detach() for name, value in parameters.items()}
            for name, value in gradients(detached, buffers, inputs, labels).items():
                parameters[name].grad = value
            optimizer.step()
        return parameters


class _Classifier(nn.Module):
    """A model's logits as its `forward`, which is what `functional_call` calls."""

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the fused logits `(B, C)`."""
        return self.model.classify(self.model.encode(inputs))


def seconds(train: Callable[[], object]) -> Callable[[], float]:
    """Return a function that trains once and returns the seconds it took."""

    def timed() -> float:
        started = clock()
        train()
        return clock() - started

    return timed


def left_alone() -> list[str]:
    """Return the methods that override none of the hooks which a graph over seeds would have to rewrite."""
    return [name for name in METHODS.names() if not any(_overrides(METHODS.load(name), hook) for hook in LEFT_ALONE)]


def _overrides(method: type[Method], hook: str) -> bool:
    return getattr(method, hook) is not getattr(Method, hook)


def run(rounds: Mapping[str, int] = ROUNDS) -> int:
    """Print how many times as fast each way trains the five seeds as one seed after another does."""
    import click

    torch.set_num_threads(1)
    for work in (SMALL, RESNET):
        trial = Trial(work)
        one = seconds(trial.one_by_one)
        for label, train in (("one graph", trial.in_one_graph), ("vmap", trial.mapped)):
            gain = ratio(one, seconds(train), rounds[work.backbone])
            click.echo(f"{work.backbone:10} {label:10} {gain:5.2f}x as fast as one seed after another")
    names = left_alone()
    click.echo(f"{len(names)} of {len(METHODS.names())} methods leave the step alone: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
