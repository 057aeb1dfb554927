"""Typed, lazy registries of methods, datasets, backbones, fusions and experiments.

Names are found by looking at file names and class statements, so that listing imports nothing heavy; a class is
imported when it is asked for. Other installed packages add to a registry through the entry point groups
`equipoise.methods`, `equipoise.datasets`, `equipoise.backbones` and `equipoise.fusions`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from benchmark.errors import EquipoiseError, UsageError, unknown_name
from benchmark.paths import SOURCE_ROOT

if TYPE_CHECKING:
    from benchmark.backbones import Backbone
    from benchmark.dataset import Dataset
    from benchmark.fusion import Fusion
    from benchmark.method import Method

T = TypeVar("T")

OWN = "equipoise"
_SOURCE_SUFFIXES = {".py", ".csv", ".json"}
"""Code and the tables it reads; a pipeline file beside them decides when to run, not what."""


@dataclass(frozen=True)
class Entry:
    """One registered name: where its class is, without having imported it.

    `beside` names the modules of the harness that define entries of its kind: one may build on another.
    """

    name: str
    module: str
    attr: str | None
    kind: str
    origin: str
    beside: tuple[str, ...] = field(default=(), kw_only=True)

    @cached_property
    def path(self) -> Path:
        """File (or package folder) that defines the entry."""
        top, *rest = self.module.split(".")
        if self.origin == OWN:
            location = SOURCE_ROOT.joinpath(top, *rest)
            return location if location.is_dir() else location.with_suffix(".py")
        try:
            spec = importlib.util.find_spec(self.module)
        except ImportError:
            spec = None
        if spec is None or spec.origin is None:
            raise EquipoiseError(
                f"{self.kind} {self.name!r}: module {self.module!r} of {self.origin} not found. Reinstall it."
            )
        file = Path(spec.origin)
        return file.parent if file.name == "__init__.py" else file

    def description(self) -> str:
        """First line of the entry's docstring, read without importing it."""
        file = self.path / "__init__.py" if self.path.is_dir() else self.path
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == self.attr)
        text = ast.get_docstring(next(named, tree)) or ast.get_docstring(tree) or ""
        return text.partition("\n")[0]

    def source_files(self) -> list[Path]:
        """Files whose content decides what the entry does: its own, and what it imports of its package's own code.

        An entry of the harness counts with those that it builds on: the rest of the harness is covered by the protocol
        version.
        """
        root = self.path.parents[len(self.module.split(".")) - 1]
        top = self.module.split(".")[0]
        families = self.beside if top == "benchmark" else _FAMILIES.get(top, (top,))
        found: set[Path] = set()
        queue = _sources(self.path)
        while queue:
            file = queue.pop()
            if file not in found:
                found.add(file)
                queue.extend(_imported(file, root, families))
        return sorted(found)

    def source_digest(self) -> str:
        """Sha256 over `source_files`; part of a cell's key, so that an edited method never reuses an old result."""
        base = self.path.parents[len(self.module.split(".")) - 1]
        digest = hashlib.sha256()
        for file in self.source_files():
            content = file.read_bytes().replace(b"\r\n", b"\n")
            digest.update(f"{file.relative_to(base).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()


@dataclass(frozen=True)
class Composed(Entry):
    """A host method with a modulation wrapped around it, named `host+modulation`."""

    parts: tuple[Entry, Entry]

    def description(self) -> str:
        """Name both."""
        host, modulation = self.parts
        return f"{host.name} with its gradients modulated by {modulation.name}."

    def source_files(self) -> list[Path]:
        """Files of both."""
        return sorted({file for part in self.parts for file in part.source_files()})

    def source_digest(self) -> str:
        """Sha256 over the digests of both."""
        return hashlib.sha256("".join(part.source_digest() for part in self.parts).encode()).hexdigest()


_FAMILIES = {"baselines": ("baselines", "methods"), "methods": ("baselines", "methods")}
"""Top-level packages whose modules share code with one another; any other package keeps to itself."""


def _sources(path: Path) -> list[Path]:
    """Return a module's file, or a package folder's code and the tables it reads."""
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.suffix in _SOURCE_SUFFIXES and file.is_file()]


def _imported(file: Path, root: Path, families: Collection[str]) -> Iterator[Path]:
    """Yield the files below `root` that a Python file imports from the packages or modules `families`."""
    if file.suffix != ".py":
        return
    package = file.relative_to(root).parent.parts
    within = [tuple(family.split(".")) for family in families]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            stem = (*start, *(node.module.split(".") if node.module else ()))
            targets = [stem, *((*stem, alias.name) for alias in node.names)]
        else:
            continue
        for target in targets:
            if any(target[: len(family)] == family for family in within):
                module = root.joinpath(*target)
                candidates = (module.with_suffix(".py"), module / "__init__.py")
                yield from (candidate for candidate in candidates if candidate.is_file())


class Registry(Generic[T]):
    """Names to lazily loaded classes; unknown names and collisions are answered with the list."""

    def __init__(self, kind: str, discover: Callable[[], Iterable[Entry]], base: str, group: str) -> None:
        self.kind = kind
        self._discover = discover
        self._base = base
        self._group = group

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for entry in [*self._discover(), *_plugins(self.kind, self._group)]:
            other = entries.get(entry.name)
            if other is not None:
                raise UsageError(
                    f"Two {self.kind}s are named {entry.name!r}: {other.module} ({other.origin}) and {entry.module} "
                    f"({entry.origin}). Rename one or uninstall its package."
                )
            entries[entry.name] = entry
        return entries

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)

    def entry(self, name: str) -> Entry:
        """Return where `name` is defined; raises UsageError with the nearest name for an unknown one."""
        try:
            return self._entries[name]
        except KeyError:
            raise unknown_name(self.kind, name, self._entries) from None

    def load(self, name: str) -> type[T]:
        """Import and return the class registered as `name`."""
        entry = self.entry(name)
        if entry.origin == OWN:
            _refuse_shadowed(entry.module.split(".")[0])
        module = importlib.import_module(entry.module)
        base_module, base_name = self._base.split(":")
        base = getattr(importlib.import_module(base_module), base_name)
        if entry.attr is not None:
            found = [getattr(module, entry.attr, None)]
        else:
            found = [
                value
                for value in vars(module).values()
                if isinstance(value, type) and issubclass(value, base) and value.__module__ == entry.module
            ]
        if len(found) != 1 or not (isinstance(found[0], type) and issubclass(found[0], base)):
            raise UsageError(
                f"{self.kind} {name!r}: {entry.module} must define exactly one subclass of {base_name}, "
                f"found {[getattr(item, '__name__', item) for item in found]}."
            )
        return cast("type[T]", found[0])


def _plugins(kind: str, group: str) -> Iterator[Entry]:
    for point in entry_points(group=group):
        module, _, attr = point.value.partition(":")
        origin = point.dist.name if point.dist else module.split(".")[0]
        yield Entry(point.name, module, attr or None, f"external {kind}", origin)


def _refuse_shadowed(top: str) -> None:
    """Raise when another installed package hides one of ours (`datasets` is also a popular package)."""
    spec = importlib.util.find_spec(top)
    locations = [Path(folder).resolve() for folder in (spec.submodule_search_locations or ())] if spec else []
    if SOURCE_ROOT / top not in locations:
        raise UsageError(
            f"Package {top!r} resolves to {', '.join(map(str, locations)) or 'nothing'}, not to {SOURCE_ROOT / top}. "
            "Another installed package shadows it: run from the project's own environment."
        )


def _modules(folder: str, kind: str) -> Iterator[Entry]:
    """One entry per file or package of a top-level folder; the name is the file's."""
    for path in sorted((SOURCE_ROOT / folder).iterdir()):
        is_package = path.is_dir() and (path / "__init__.py").is_file()
        if not path.name.startswith(("_", ".")) and (is_package or path.suffix == ".py"):
            yield Entry(path.stem, f"{folder}.{path.stem}", None, kind, OWN)


def _classes(files: Iterable[Path], base: str, kind: str) -> Iterator[Entry]:
    """One entry per class statement that names `base`; the name is the class's in lower case."""
    found = [
        (".".join(path.relative_to(SOURCE_ROOT).with_suffix("").parts), node.name)
        for path in files
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if any(isinstance(b, ast.Name) and b.id == base for b in node.bases)
    ]
    beside = tuple(dict.fromkeys(module for module, _ in found))
    yield from (Entry(name.lower(), module, name, kind, OWN, beside=beside) for module, name in found)


SIGN = "+"
"""What stands between the names of a composition's host and modulation."""


class MethodRegistry(Registry["Method"]):
    """Methods, and every `host+modulation` of two of them."""

    def entry(self, name: str) -> Entry:
        """Return where `name`, or each method of a composition, is defined."""
        host, sign, modulation = name.partition(SIGN)
        if not sign:
            return super().entry(name)
        parts = super().entry(host), super().entry(modulation)
        kind = "proposed" if "proposed" in {part.kind for part in parts} else parts[0].kind
        return Composed(name, parts[0].module, None, kind, parts[0].origin, parts)

    def load(self, name: str) -> type[Method]:
        """Import and return the class registered as `name`, or the composition of two."""
        found = self.entry(name)
        if not isinstance(found, Composed):
            return super().load(name)
        from benchmark.composition import composed

        return composed(*(super(MethodRegistry, self).load(part.name) for part in found.parts))


METHODS: Registry[Method] = MethodRegistry(
    "method",
    lambda: [*_modules("baselines", "baseline"), *_modules("methods", "proposed")],
    "benchmark.method:Method",
    "equipoise.methods",
)
DATASETS: Registry[Dataset] = Registry(
    "dataset", lambda: _modules("datasets", "dataset"), "benchmark.dataset:Dataset", "equipoise.datasets"
)
BACKBONES: Registry[Backbone] = Registry(
    "backbone",
    lambda: _classes(sorted((SOURCE_ROOT / "benchmark/backbones").glob("[!_]*.py")), "Backbone", "backbone"),
    "benchmark.backbones:Backbone",
    "equipoise.backbones",
)
FUSIONS: Registry[Fusion] = Registry(
    "fusion",
    lambda: _classes([SOURCE_ROOT / "benchmark/fusion.py"], "Fusion", "fusion"),
    "benchmark.fusion:Fusion",
    "equipoise.fusions",
)


def registries() -> dict[str, Registry[Any]]:
    """Return every registry of classes by its plural."""
    return {"methods": METHODS, "datasets": DATASETS, "backbones": BACKBONES, "fusions": FUSIONS}
