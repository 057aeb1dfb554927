"""Batches: arrays on the device, or read ahead from their files, decoded, normalised and augmented per batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from benchmark.dataset import PARTS
from benchmark.errors import DataError, unknown_name
from benchmark.preparation import fit_normalisation, obtain
from benchmark.prepared import Normalisation, Prepared, Rows
from benchmark.registry import DATASETS
from benchmark.streaming import Stored, free_bytes, read_ahead, too_large

log = logging.getLogger(__name__)

Augment = Callable[[dict[str, Tensor], Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """Samples on the device: `inputs` (B, *shape); `labels`, `index` in the part and `domains` (B,)."""

    inputs: dict[str, Tensor]
    labels: Tensor
    index: Tensor
    domains: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device) -> Self:
        """Return the batch on another device."""
        return replace(
            self,
            inputs={name: values.to(device) for name, values in self.inputs.items()},
            labels=self.labels.to(device),
            index=self.index.to(device),
            domains=None if self.domains is None else self.domains.to(device),
        )


@dataclass(frozen=True)
class Scaling:
    """Normalisation as `shift + scale * x`; the shift (1,) is float32, which makes the result float32."""

    shift: Tensor
    scale: float

    @classmethod
    def of(cls, fitted: Normalisation, device: torch.device | str) -> Scaling:
        """Return the scaling that gives mean 0 and standard deviation 1."""
        return cls(torch.tensor([-fitted.mean / fitted.std], device=device), 1 / fitted.std)


@dataclass(frozen=True)
class Part:
    """One part of a named split on the device.

    `inputs` holds per modality an array (rows, *shape) in its compact dtype, which parts share and nobody writes to;
    `rows` (n,) says which of its rows belongs to each sample. Arrays that do not fit are in `stored` instead: batches
    are read from their files, some ahead, and are the same bit for bit. Modalities that `scaling` names are decoded to
    float32 and normalised per batch; the others are passed on as they are.
    """

    inputs: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    labels: Tensor
    domains: Tensor | None
    scaling: Mapping[str, Scaling]
    augmentation: Augment | None = None
    stored: Mapping[str, Stored] = field(default_factory=dict)

    @classmethod
    def from_tensors(cls, inputs: Mapping[str, Tensor], labels: Tensor, domains: Tensor | None = None) -> Part:
        """Wrap tensors (n, *shape) and labels (n,) as they are; raises DataError if their lengths differ."""
        n = len(labels)
        lengths = {name: len(values) for name, values in inputs.items()}
        if domains is not None:
            lengths["domains"] = len(domains)
        if set(lengths.values()) != {n}:
            raise DataError(f"A part needs as many values as labels ({n}). Found {lengths}.")
        own = torch.arange(n, device=labels.device)
        return cls(dict(inputs), dict.fromkeys(inputs, own), labels.long(), domains, {})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample per modality."""
        arrays: dict[str, Tensor | Stored] = {**self.inputs, **self.stored}
        return {name: tuple(arrays[name].shape[1:]) for name in self.rows}

    def __len__(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device) -> Part:
        """Return the part with everything on another device but what stays in files."""
        return replace(
            self,
            inputs={name: values.to(device) for name, values in self.inputs.items()},
            rows={name: rows.to(device) for name, rows in self.rows.items()},
            labels=self.labels.to(device),
            domains=None if self.domains is None else self.domains.to(device),
            scaling={name: replace(s, shift=s.shift.to(device)) for name, s in self.scaling.items()},
        )

    def subset(self, indices: Tensor) -> Part:
        """Return the samples at `indices`, in that order; arrays are shared, not copied."""
        indices = indices.to(self.labels.device)
        return Part(
            self.inputs,
            {name: rows[indices] for name, rows in self.rows.items()},
            self.labels[indices],
            None if self.domains is None else self.domains[indices],
            self.scaling,
            self.augmentation,
            self.stored,
        )

    def joined(self, others: Iterable[Self]) -> Self:
        """Return the samples of this part followed by those of `others`, parts of the same dataset."""
        parts = [self, *others]
        return replace(
            self,
            rows={name: torch.cat([part.rows[name] for part in parts]) for name in self.rows},
            labels=torch.cat([part.labels for part in parts]),
            domains=None if self.domains is None else torch.cat([p.domains for p in parts if p.domains is not None]),
        )

    def others(self, indices: Tensor) -> Tensor:
        """Return the positions (CPU, ascending) of all samples but those at `indices`."""
        everything = torch.arange(len(self))
        return everything[~torch.isin(everything, indices.cpu())]

    def batches(
        self,
        batch_size: int,
        *,
        order: Generator | None = None,
        indices: Tensor | None = None,
        augment: Generator | None = None,
    ) -> Iterator[Batch]:
        """Yield batches, the last one possibly smaller.

        `order` shuffles (None: in sample order), `indices` picks samples, `augment` draws the dataset's
        augmentation. The order is drawn when this is called, so that a generator is spent alike however far
        batches are read.
        """
        device = self.labels.device
        index = torch.arange(len(self), device=device) if indices is None else indices.to(device)
        if order is not None:
            index = index[torch.randperm(len(index), generator=order, device=order.device).to(device)]
        return self._batches(index, batch_size, augment)

    def _batches(self, index: Tensor, batch_size: int, augment: Generator | None) -> Iterator[Batch]:
        # Everything but the inputs is gathered once for all batches: what is left per batch are views.
        rows = {name: rows[index].split(batch_size) for name, rows in self.rows.items()}
        labels = self.labels[index].split(batch_size)
        domains = None if self.domains is None else self.domains[index].split(batch_size)
        chunks = index.split(batch_size) if len(index) else ()
        with self._streams(index, batch_size) as streams:
            for number, (chunk, read) in enumerate(zip(chunks, streams, strict=False)):
                inputs = {}
                for name, chosen in rows.items():
                    values = read[name] if name in read else self.inputs[name].index_select(0, chosen[number])
                    inputs[name] = self._decode(name, values)
                if augment is not None and self.augmentation is not None:
                    inputs = self.augmentation(inputs, augment)
                yield Batch(inputs, labels[number], chunk, None if domains is None else domains[number])

    def _streams(self, index: Tensor, batch_size: int) -> AbstractContextManager[Iterator[dict[str, Tensor]]]:
        """Open the batches of what is stored in files, as they are there: nothing for every batch where all is here."""
        if not self.stored:
            return nullcontext(repeat({}))
        rows = {name: self.rows[name][index].cpu().split(batch_size) for name in self.stored}
        return closing(read_ahead(self.stored, rows, index.device))

    def _decode(self, name: str, values: Tensor) -> Tensor:
        scaling = self.scaling.get(name)
        # One operation casts and normalises: half the time of a step-by-step decoding of small samples.
        return values if scaling is None else torch.add(scaling.shift, values, alpha=scaling.scale)


@dataclass(frozen=True)
class _OnDevice:
    """An array on a device as NumPy reads it, some rows at a time: as a whole it may not fit into the host's memory."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def __getitem__(self, rows: Rows, /) -> NDArray[Any]:
        found: NDArray[Any] = self.values[torch.from_numpy(rows).to(self.values.device)].cpu().numpy()
        return found


@dataclass(frozen=True)
class TaskData:
    """A dataset under one named split; `digest` (sha256 hex) is equal when the prepared data are equal.

    `zeros` are the stored values about which signed modalities are normalised, and not about their mean; `held_out`
    says of which parts those without a domain are made (see `DatasetCard`).
    """

    parts: Mapping[str, Part]
    modalities: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    digest: str
    zeros: Mapping[str, float] = field(default_factory=dict)
    held_out: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {name: (name,) for name in PARTS})

    def without(self, target: str) -> dict[str, Part]:
        """Return the source domains' train and val parts, and the test part of the target domain alone.

        The rest of the test part is "sources": its features may be recorded, and nothing is trained on it, nor selected
        unless `held_out` validates on it.
        All are normalised by what the sources' train part says. Domain labels count the source domains; samples of the
        target have none. Raises DataError where train, val or test has no sample left.
        """
        number = self.domains.index(target)
        sources = torch.tensor([place - (place > number) for place in range(len(self.domains))])
        parts = {}
        for name, made_of in {**self.held_out, "sources": ("test",)}.items():
            first, *rest = (self.parts[own] for own in made_of)
            part = first.joined(rest)
            assert part.domains is not None, "a dataset with domains labels every sample"
            chosen = part.domains == number if name == "test" else part.domains != number
            found = part.subset(chosen.nonzero().squeeze(1))
            if not len(found) and name != "sources":
                raise DataError(f"No sample is left in {name} when domain {target!r} is left out. Use another target.")
            kept = None if name == "test" else sources.to(part.labels.device)[found.domains]
            parts[name] = replace(found, domains=kept)
        scaling = {name: self._fitted(name, parts["train"]) for name in parts["train"].scaling}
        return {name: replace(part, scaling=scaling) for name, part in parts.items()}

    def _fitted(self, modality: str, part: Part) -> Scaling:
        """Fit a modality's normalisation on one part."""
        rows = part.rows[modality].unique().cpu().numpy()
        stored = part.stored.get(modality)
        array = _OnDevice(part.inputs[modality]) if stored is None else stored.mapped
        fitted = fit_normalisation(array, rows, zero=self.zeros.get(modality))
        return Scaling.of(fitted, part.labels.device)


def load(dataset: str, split: str | None = None, device: torch.device | str = "cpu") -> TaskData:
    """Put a prepared dataset on a device once; `split` None is the dataset's default.

    Raises UsageError for an unknown dataset or split, DataError where the prepared data are missing or wrong.
    """
    entry = DATASETS.load(dataset)()
    split = split or entry.card.default_split
    if split not in entry.card.splits:
        raise unknown_name(f"split of dataset {dataset!r}", split, entry.card.splits)
    placed = place(obtain(dataset), split, device, entry.augment)
    return replace(placed, zeros=entry.card.zeros, held_out=entry.card.held_out.get(split, placed.held_out))


def place(prepared: Prepared, split: str, device: torch.device | str, augmentation: Augment | None = None) -> TaskData:
    """Put an opened dataset's arrays on a device, with the parts of one split as views of them.

    What does not fit there (see `too_large`) is left in its file, and said. The CPU reads all from mapped files.
    """
    meta, index, device = prepared.meta, prepared.index, torch.device(device)
    arrays = {name: prepared.array(name) for name in index.rows}
    free = free_bytes(device)
    streamed = too_large({name: array.nbytes for name, array in arrays.items()}, free)
    stored = {name: Stored(arrays.pop(name)) for name in streamed}
    for name, array in stored.items():
        log.warning(
            "%s: %s (%.1f GB) is read from its file while training: %.1f GB are free on %s.",
            meta.dataset,
            name,
            array.mapped.nbytes / 1e9,
            free / 1e9,
            device,
        )

    def part(name: str) -> Part:
        samples = (index.parts[split] == name).nonzero()[0]
        return Part(
            inputs,
            {m: torch.from_numpy(rows[samples]).to(device) for m, rows in index.rows.items()},
            torch.from_numpy(index.labels[samples]).to(device),
            None if index.domains is None else torch.from_numpy(index.domains[samples]).to(device),
            scaling,
            augmentation,
            stored,
        )

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    scaling = {name: Scaling.of(fitted, device) for name, fitted in meta.splits[split].normalisation.items()}
    return TaskData(
        parts={name: part(name) for name in PARTS},
        modalities=tuple(index.rows),
        shapes={name: array.shape for name, array in meta.modalities.items()},
        classes=meta.classes,
        domains=meta.domains,
        digest=meta.content_digest,
    )
