"""Protocol, Cell and Experiment: frozen, validated before anything runs, digestible."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from benchmark.errors import UsageError, unknown_name
from benchmark.metrics import Metric, parts_of
from benchmark.registry import BACKBONES, DATASETS, FUSIONS, METHODS, SIGN, Registry
from benchmark.version import PROTOCOL_VERSION

M = TypeVar("M", bound=BaseModel)

Column = tuple[str, str, str]
"""A column group of a table: dataset, backbone, fusion."""

Selection = Literal["best_val", "last", "best_test"]


def canonical(value: Any) -> str:
    """Return the one JSON text of a configuration: sorted keys, 1.0 written as 1 so that equal numbers are equal."""

    def plain(item: Any) -> Any:
        if isinstance(item, float) and item.is_integer():
            return int(item)
        if isinstance(item, Mapping):
            return {str(key): plain(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [plain(entry) for entry in item]
        return item

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """Return the sha256 (hex) of a configuration's canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def validated(model: type[M], data: Any, what: str) -> M:
    """Build `model` from plain data; raises UsageError naming every wrong field, its value and what is allowed."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            field = ".".join(str(part) for part in item["loc"]) or "(whole)"
            found = "" if item["type"] == "missing" else f" Found {item['input']!r}."
            known = f" Known: {', '.join(model.model_fields) or 'none'}." if item["type"] == "extra_forbidden" else ""
            problems.append(f"{field}: {item['msg']}.{found}{known}")
        raise UsageError(f"{what}: " + " ".join(problems)) from None


class Frozen(BaseModel):
    """Immutable configuration in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Optimizer(Frozen):
    """Optimiser of every method's parameters; `momentum` is read by SGD alone."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 1e-3
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 1e-4


class Schedule(Frozen):
    """Learning rate as a function of the epoch; `step` multiplies by `gamma` every `every` epochs."""

    name: Literal["constant", "cosine", "step"] = "constant"
    every: PositiveInt = 30
    gamma: float = Field(0.1, gt=0, le=1)


def leaves(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of nested configuration with their values, named like `optimizer.lr`."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


class Protocol(Frozen):
    """The recipe that all rows of a table share."""

    epochs: PositiveInt
    batch_size: PositiveInt = 64
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    clip_norm: PositiveFloat | None = None
    split: str | None = Field(None, description="named split; None is the dataset's default")
    augment: bool = True
    hidden: PositiveInt | None = Field(None, description="units of the head's hidden layer; None is a linear head")
    reversal: NonNegativeFloat = Field(
        1.0, description="weight lambda of the reversed domain gradient (several domains)"
    )
    # Left out of plain data where nothing is recorded: files and digests from before it existed stay what they are.
    features: NonNegativeInt = Field(
        0, description="test samples per domain whose fused features are recorded at the end", exclude_if=operator.not_
    )
    compile: bool = Field(False, description="encoders run through torch.compile", exclude_if=operator.not_)

    def changed(self, changes: Mapping[str, Any]) -> Protocol:
        """Return the protocol with new values of fields named like `optimizer.lr`; raises UsageError for others."""
        fields = {"features": self.features, "compile": self.compile, **self.model_dump()}
        for name, value in changes.items():
            group, _, last = name.rpartition(".")
            place = fields.get(group) if group else fields
            if not isinstance(place, dict) or last not in place:
                raise unknown_name("protocol field", name, dict(leaves(fields)))
            place[last] = value
        return validated(Protocol, fields, f"Protocol with {dict(changes)}")


OF_PROTOCOL = "protocol."
"""What stands before a protocol field among the settings of a row."""


class Row(Frozen):
    """One row of a table: a method with the options, and the changes of the protocol, that the experiment gives it."""

    method: str
    variant: str = ""
    options: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    proposed: bool = False

    @classmethod
    def declared(cls, method: str, variant: str, settings: Mapping[str, Any], *, proposed: bool) -> Row:
        """Return the row of settings as an experiment writes them: options, and `protocol.` before protocol fields."""
        options = {name: value for name, value in settings.items() if not name.startswith(OF_PROTOCOL)}
        protocol = {name.removeprefix(OF_PROTOCOL): settings[name] for name in settings.keys() - options.keys()}
        return cls(method=method, variant=variant, options=options, protocol=protocol, proposed=proposed)

    @property
    def parts(self) -> tuple[str, ...]:
        """The method, or the host and the modulation of a composition."""
        return tuple(self.method.split(SIGN))

    @property
    def settings(self) -> dict[str, Any]:
        """The options and changes of the protocol as an experiment writes them."""
        return {**self.options, **{f"{OF_PROTOCOL}{name}": value for name, value in self.protocol.items()}}

    @property
    def label(self) -> str:
        """Name in the table: the method, with the variant in brackets where it has one."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


class Cell(Frozen):
    """One training run.

    `weights` names the backbone's pretrained weights (None: from scratch). `official` has the method start from the
    options that its authors use on the dataset, where they are known; `options` go before them.
    """

    dataset: str
    backbone: str
    fusion: str
    method: str
    options: dict[str, Any] = {}
    protocol: Protocol
    seed: int = Field(ge=0)
    target: str | None = None
    weights: str | None = None
    official: bool = False

    def identity(self) -> dict[str, Any]:
        """Return the configuration as plain data, as it is stored and digested: what differs from the defaults.

        So a field that a later version adds leaves the cells that do not use it what they are. The defaults themselves
        belong to the protocol version.
        """
        return self.model_dump(mode="json", exclude_defaults=True)

    def key(self, sources: Mapping[str, str] | None = None) -> str:
        """Return the sha256 of configuration, sources and protocol version; `sources` when they have been read.

        Option defaults are part of the method's source, so they need not be spelled out (and torch need not be
        imported).
        """
        sources = self.sources() if sources is None else sources
        return digest({"cell": self.identity(), "sources": sources, "protocol_version": PROTOCOL_VERSION})

    def sources(self) -> dict[str, str]:
        """Return the source digests (sha256) of method, dataset, backbone and fusion."""
        return {
            "method": METHODS.entry(self.method).source_digest(),
            "dataset": DATASETS.entry(self.dataset).source_digest(),
            "backbone": BACKBONES.entry(self.backbone).source_digest(),
            "fusion": FUSIONS.entry(self.fusion).source_digest(),
        }

    def describe(self) -> str:
        """Return the cell in one line for messages and progress."""
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        target = f" target {self.target}" if self.target else ""
        return f"{self.dataset}/{self.backbone}/{self.fusion}/{self.method}{options}{target} seed {self.seed}"


def _variants(value: Any) -> Any:
    """Read `method:` (no variants) and `method: {variant: null}` as empty mappings."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: {variant: options or {} for variant, options in (variants or {}).items()}
        if isinstance(variants, Mapping | None)
        else variants
        for name, variants in value.items()
    }


Rows = Annotated[dict[str, dict[str, dict[str, Any]]], BeforeValidator(_variants)]


Choices = dict[str, list[Any]]


class Search(Frozen):
    """What tuning may choose from: values by protocol field for every row, and by option for the rows of a method."""

    protocol: Choices = {}
    methods: dict[str, Choices] = {}

    def model_post_init(self, _context: Any) -> None:
        """Refuse a method that is not registered and a choice without values."""
        for name, choices in (("protocol", self.protocol), *self.methods.items()):
            if name != "protocol":
                METHODS.entry(name)
            for field, values in choices.items():
                if not values:
                    raise UsageError(f"Search space of {name}: {field} has no values. Give some or leave it out.")

    def space(self, row: Row) -> tuple[Choices, Choices]:
        """Return the protocol fields and the method's options that a row may vary: not those that it fixes itself.

        A composition varies what its parts vary.
        """
        options = {name: values for part in row.parts for name, values in self.methods.get(part, {}).items()}
        return (
            {name: values for name, values in self.protocol.items() if name not in row.protocol},
            {name: values for name, values in options.items() if name not in row.options},
        )


class Tuning(Frozen):
    """The budget that every row has alike: trials, each on some seeds of its own, judged on validation data."""

    trials: PositiveInt
    seeds: PositiveInt = 1
    search: Search


class Setting(Frozen):
    """What tuning chose for a row: options of the method, and protocol fields named as in `optimizer.lr`."""

    options: dict[str, Any] = {}
    protocol: dict[str, Any] = {}


def column_name(column: Column) -> str:
    """Return a column group as text: `dataset/backbone/fusion`."""
    return "/".join(column)


def place_name(column: Column, target: str | None) -> str:
    """Return where a row is tuned: a column group, and of that each target domain for itself."""
    return column_name(column) if target is None else f"{column_name(column)}/{target}"


_UNTUNED = Setting()


def refuse_targets(dataset: str, targets: Sequence[str]) -> None:
    """Raise UsageError where a dataset cannot be trained without a target domain, with the domains that it has."""
    domains = DATASETS.load(dataset).card.domains
    if not domains:
        raise UsageError(f"Dataset {dataset!r} has no domains to leave out. Drop `targets`, or use another dataset.")
    if len(domains) < 2:
        raise UsageError(f"Dataset {dataset!r} has one domain, {domains[0]!r}: without it nothing is left to train on.")
    for name in targets:
        if name not in domains and tuple(targets) != ("all",):
            raise unknown_name(f"target domain of dataset {dataset!r}", name, domains)


class PublishedTable(Frozen):
    """Which published table stands beside ours."""

    paper: str
    table: str


class Experiment(Frozen):
    """The grid of cells behind one table."""

    name: str
    title: str
    datasets: tuple[str, ...] = Field(min_length=1)
    backbones: tuple[str, ...] = Field(min_length=1)
    fusions: tuple[str, ...] = ("concat",)
    seeds: PositiveInt = Field(5, description="seeds 0 .. n-1, the same for every row")
    protocol: Protocol
    reference: str = "joint"
    baselines: Rows
    proposed: Rows = {}
    metrics: tuple[Metric, ...] = Field(("accuracy", "balance_factor"), min_length=1)
    selection: Selection = "best_val"
    published: PublishedTable | None = None
    targets: tuple[str, ...] = Field((), description="domains that are tested when left out of training; `all` of them")
    weights: dict[str, str] = Field({}, description="pretrained weights by dataset; the others start from scratch")
    official: bool = Field(False, description="methods start from their authors' options for the dataset")
    notes: tuple[str, ...] = Field((), description="readings of what a paper leaves open, for the footer")
    tuning: Tuning | None = None
    tuned: dict[str, dict[str, Setting]] = Field({}, description="by place and row, as `equipoise tune` wrote it")

    def model_post_init(self, _context: Any) -> None:
        """Refuse names that no registry knows, a reference that is not a row, and a method in both groups."""
        known: list[tuple[Registry[Any], tuple[str, ...]]] = [
            (DATASETS, self.datasets),
            (BACKBONES, self.backbones),
            (FUSIONS, self.fusions),
            (METHODS, (*self.baselines, *self.proposed)),
        ]
        for registry, names in known:
            for name in names:
                registry.entry(name)
        for dataset in self.datasets if self.targets else ():
            refuse_targets(dataset, self.targets)
        for dataset in self.datasets:
            modalities = DATASETS.load(dataset).card.modalities
            for metric in self.metrics:
                modality = parts_of(metric)[1]
                if modality is not None and modality not in modalities:
                    raise unknown_name(f"modality in a metric of experiment {self.name!r}", modality, modalities)
        for name in self.weights.keys() - set(self.datasets):
            raise unknown_name(f"dataset with weights in experiment {self.name!r}", name, self.datasets)
        for name in self.baselines.keys() & self.proposed.keys():
            raise UsageError(f"Experiment {self.name!r}: {name!r} is a baseline and proposed. Keep one of them.")
        for row in self.rows():
            self.protocol.changed(row.protocol)
        if self.reference not in self.baselines:
            raise UsageError(
                f"Experiment {self.name!r}: reference {self.reference!r} is not among its baselines "
                f"({', '.join(self.baselines)}). Add it or name another reference."
            )

    def rows(self) -> list[Row]:
        """Return the table's rows in order: baselines, then the proposed methods; one per variant."""
        return [
            Row.declared(method, variant, settings, proposed=proposed)
            for proposed, group in ((False, self.baselines), (True, self.proposed))
            for method, variants in group.items()
            for variant, settings in (variants or {"": {}}).items()
        ]

    def columns(self) -> list[Column]:
        """Return every column group, in the order of the papers: all datasets of a backbone side by side."""
        return [(d, b, f) for b in self.backbones for d in self.datasets for f in self.fusions]

    def setting(self, row: Row, column: Column, target: str | None = None) -> Setting:
        """Return what tuning chose for a row in a column group and target domain: nothing before it has run."""
        return self.tuned.get(place_name(column, target), {}).get(row.label, _UNTUNED)

    def cell(
        self, row: Row, column: Column, seed: int, setting: Setting | None = None, target: str | None = None
    ) -> Cell:
        """Return the training run of one row, column group, seed and target domain.

        `setting` goes before the tuned one.
        """
        dataset, backbone, fusion = column
        setting = setting or self.setting(row, column, target)
        changes = {**row.protocol, **setting.protocol}
        return Cell(
            dataset=dataset,
            backbone=backbone,
            fusion=fusion,
            method=row.method,
            options={**row.options, **setting.options},
            protocol=self.protocol.changed(changes) if changes else self.protocol,
            seed=seed,
            target=target,
            weights=self.weights.get(dataset),
            official=self.official,
        )

    def targets_of(self, dataset: str) -> tuple[str | None, ...]:
        """Return the domains that are left out in turn; one None where the experiment leaves none out."""
        if not self.targets:
            return (None,)
        domains = DATASETS.load(dataset).card.domains
        return domains if self.targets == ("all",) else tuple(name for name in domains if name in self.targets)

    def cells_of(self, row: Row, column: Column) -> Iterator[Cell]:
        """Yield the cells behind one entry of the table."""
        for target in self.targets_of(column[0]):
            yield from (self.cell(row, column, seed, target=target) for seed in range(self.seeds))

    def cells(self, methods: tuple[str, ...] = ()) -> Iterator[Cell]:
        """Yield every cell of the grid, or those of the named methods alone."""
        for column in self.columns():
            for row in self.rows():
                if not methods or row.method in methods:
                    yield from self.cells_of(row, column)
