"""One cell from its configuration to its record."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.errors import EquipoiseError, UsageError, unknown_name
from benchmark.paths import SOURCE_ROOT
from benchmark.protocol import Cell, refuse_targets, validated
from benchmark.registry import BACKBONES, DATASETS, FUSIONS, METHODS
from benchmark.version import RESULT_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_fabric import Fabric
    from torch import Tensor

    from benchmark.backbones import Backbone
    from benchmark.data import Part, TaskData
    from benchmark.method import Method

    State = Mapping[str, Tensor]

_SOURCES = ("benchmark", "baselines", "methods", "datasets")
_VERSIONED = ("torch", "pytorch-lightning", "numpy", "scikit-learn")


def build_method(cell: Cell) -> Method:
    """Validate a cell's options and build its method; raises UsageError for a wrong option or a task it refuses."""
    from benchmark.task import Task

    method = METHODS.load(cell.method)
    dataset = DATASETS.load(cell.dataset)()
    backbone, start = BACKBONES.load(cell.backbone), cell.weights
    if cell.protocol.compile:
        from benchmark.compiling import compiled

        backbone = compiled(backbone)  # type: ignore[arg-type]  # to mypy a class is not hashable
    states = {} if start is None else {s: weights(cell.backbone, start, s) for s in dataset.shapes.values()}
    task = Task(
        shapes=dict(dataset.shapes),
        classes=len(dataset.card.classes),
        epochs=cell.protocol.epochs,
        backbone=lambda _modality, shape: _encoder(backbone, shape, start, states),
        fusion=FUSIONS.load(cell.fusion),
        domains=() if cell.target is None else tuple(d for d in dataset.card.domains if d != cell.target),
        hidden=cell.protocol.hidden,
    )
    official = method.official.get(cell.dataset, {}) if cell.official else {}
    options = validated(method.Options, {**official, **cell.options}, f"Options of method {cell.method!r}")
    reason = method.refuses(options, task)
    if reason:
        raise UsageError(
            f"Method {cell.method!r} cannot run on {cell.dataset}/{cell.backbone}/{cell.fusion}: {reason}."
        )
    return method(options, task)


def _encoder(
    backbone: type[Backbone], shape: tuple[int, ...], start: str | None, states: Mapping[tuple[int, ...], State]
) -> Backbone:
    # Weights replace what was drawn: every later draw of the initialisation stays what it is without them.
    encoder = backbone(shape)
    # On the meta device, where methods look for widths alone, there are no values to replace.
    if start is not None and not next(encoder.parameters()).is_meta:
        encoder.start(start, states[shape])
    return encoder


def check_cell(cell: Cell) -> None:
    """Raise UsageError if the cell cannot run: wrong option, unknown split or weights, or a method that refuses."""
    splits = DATASETS.load(cell.dataset).card.splits
    if cell.protocol.split is not None and cell.protocol.split not in splits:
        raise UsageError(f"Dataset {cell.dataset!r} has no split {cell.protocol.split!r}. Known: {', '.join(splits)}.")
    if cell.target is not None:
        refuse_targets(cell.dataset, [cell.target])
    known = BACKBONES.load(cell.backbone).weights
    if cell.weights is not None and cell.weights not in known:
        raise unknown_name(f"weights of backbone {cell.backbone!r}", cell.weights, known)
    # Whether it can run does not depend on what the encoders start from, which may not be on this machine.
    build_method(cell.model_copy(update={"weights": None}))


def weights(backbone: str, name: str, shape: tuple[int, ...]) -> State:
    """Return the published weights of a backbone's encoder, read once; raises DataError where they are not there."""
    from benchmark.backbones.weights import pretrained

    return pretrained(backbone, name, shape)


@cache
def _data(dataset: str, split: str | None, device: str) -> TaskData:
    # A warm worker trains many cells on one dataset: it is read and put on the device once.
    from benchmark.data import load

    return load(dataset, split, device)


@cache
def _parts(dataset: str, split: str | None, device: str, target: str | None) -> Mapping[str, Part]:
    # What a cell trains and tests on: without its target domain, and on that alone. Normalising anew reads all of it.
    data = _data(dataset, split, device)
    return data.parts if target is None else data.without(target)


@cache
def described(dataset: str, split: str | None) -> dict[str, Any]:
    """Return what prepared data hold: the split's name, samples and census by part, and the digest of the content."""
    # Kept like the data themselves: prepared anew meanwhile, they would no longer be what this process trains on.
    from benchmark.preparation import obtain

    meta, name = obtain(dataset).meta, split or DATASETS.load(dataset).card.default_split
    own = meta.splits[name]
    return {"split": name, "samples": own.counts, "census": own.census, "digest": meta.content_digest}


def run_cell(cell: Cell, work: Path | None = None) -> dict[str, Any]:
    """Train one cell and return its record; `work` keeps the checkpoint of an interrupted run."""
    from benchmark import process
    from benchmark.memory import PeakMemory
    from benchmark.training import cpu_or_cuda, fit

    method = build_method(cell)
    process.prepare()
    fabric = cpu_or_cuda(cell.protocol.precision)
    parts = _parts(cell.dataset, cell.protocol.split, str(fabric.device), cell.target)
    # Before the training: what fails here costs nothing.
    data = described(cell.dataset, cell.protocol.split)
    key = cell.key()
    checkpoint = work / "checkpoint.ckpt" if work is not None else None
    with PeakMemory(fabric.device) as memory:
        try:
            result = fit(method, parts, cell.protocol, cell.seed, fabric=fabric, checkpoint=checkpoint)
        except EquipoiseError as error:
            raise type(error)(f"{cell.describe()}: {error}") from error
    return {
        "schema": RESULT_SCHEMA,
        "key": key,
        "cell": cell.identity(),
        "protocol": cell.protocol.model_dump(mode="json"),
        "sources": cell.sources(),
        "options": method.options.model_dump(mode="json"),
        "modalities": list(method.task.modalities),
        "classes": method.task.classes,
        "epochs": result.epochs,
        "final": result.final,
        "balance_factor": result.epochs[-1]["balance_factor"],
        "steps": result.steps,
        "cost": {
            "forward": result.passes.forward,
            "backward": result.passes.backward,
            "relative": result.passes.relative,
            "seconds": result.seconds,
            "peak_memory_bytes": memory.peak,
        },
        "provenance": {
            **provenance(),
            "device": device_name(fabric),
            "data": data,
            "streamed": list(parts["train"].stored),
        },
    }


@cache
def _commit() -> tuple[str | None, bool | None]:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(SOURCE_ROOT), *arguments], check=True, capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *_SOURCES))
    except (OSError, subprocess.SubprocessError):
        return None, None


def provenance() -> dict[str, Any]:
    """Return what produced a record: commit, whether the tree was dirty, versions, time."""
    commit, dirty = _commit()
    versions = {"python": platform.python_version(), **{name: version(name) for name in _VERSIONED}}
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": versions,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(fabric: Fabric) -> str:
    """Return the kind and name of the device that trained."""
    import torch

    if fabric.device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(fabric.device)}"
    return f"cpu: {platform.machine()}"
