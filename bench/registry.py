"""Names of attacks, defenses, datasets, recognisers: found without importing what they name.

A plug-in is one file: a class under `@ATTACKS.register("name")` (or `DEFENSES`, `DATASETS`,
`RECOGNIZERS`). The files of the built-in packages are read as syntax trees, so listing imports no
torch; a class is imported when its name is first asked for. Other packages register through the
entry-point groups `veilbench.attacks` and `veilbench.defenses`; `--plugin FILE.py` loads a file.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import UserError

T = TypeVar("T", bound=type)


class RegistryError(UserError):
    """An unknown name, a name registered twice, or a class of the wrong type."""


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        name: The name used on the command line and in suites.
        target: "module:Class".
        summary: First sentence of the class's docstring.
        traits: Values that a listing shows, such as leaks and threats ("features", "transfer").
        origin: File that defines it, or the entry point.
    """

    name: str
    target: str
    summary: str = ""
    traits: tuple[str, ...] = ()
    origin: str = ""


class Registry:
    """Names of one kind of class, with lazy targets.

    Args:
        kind: Singular noun for messages: "attack".
        package: Package whose files are read for registrations.
        base: "module:Class" that every target must derive from.
        group: Entry-point group of outside packages, if there is one.
    """

    def __init__(self, kind: str, package: str, base: str, group: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._base = base
        self._group = group
        self._classes: dict[str, type] = {}
        self._entries: dict[str, Entry] | None = None

    def register(self, name: str) -> Callable[[T], T]:
        """Return a class decorator that registers a class under a name.

        Raises:
            RegistryError: The name belongs to another class, or the class has the wrong base.
        """

        def decorate(target: T) -> T:
            self._add_class(name, target)
            return target

        return decorate

    def names(self) -> list[str]:
        """Return all names in alphabetical order."""
        return sorted(self._table())

    def entries(self) -> list[Entry]:
        """Return all entries in alphabetical order, without importing them."""
        return [self._table()[name] for name in self.names()]

    def entry(self, name: str) -> Entry:
        """Return the entry of a name.

        Raises:
            RegistryError: The name is unknown; the message names the nearest one.
        """
        table = self._table()
        if name not in table:
            raise RegistryError(self._unknown(name, list(table)))
        return table[name]

    def get(self, name: str) -> Any:
        """Return the class of a name, importing it if need be.

        Raises:
            RegistryError: The name is unknown, or its target cannot be used.
        """
        entry = self.entry(name)
        if name not in self._classes:
            target = _resolve(entry.target, f"{self.kind} {name!r}")
            self._check_type(name, target)
            self._classes[name] = target
        return self._classes[name]

    def _table(self) -> dict[str, Entry]:
        if self._entries is None:
            table: dict[str, Entry] = {}
            decorator = f"{self.kind.upper()}S"
            for entry in [*_scan(self._package, decorator), *_entry_points(self._group)]:
                self._enter(entry, table)
            self._entries = table
        return self._entries

    def _enter(self, entry: Entry, table: dict[str, Entry]) -> None:
        known = table.setdefault(entry.name, entry)
        if known.target != entry.target:
            raise RegistryError(
                f"The {self.kind} name {entry.name!r} is taken by {known.target} ({known.origin}): "
                f"give {entry.target} ({entry.origin}) another name."
            )

    def _add_class(self, name: str, target: type) -> None:
        self._check_type(name, target)
        entry = Entry(
            name=name,
            target=f"{target.__module__}:{target.__qualname__}",
            summary=_first_sentence(target.__doc__),
            traits=tuple(
                str(trait)
                for attribute in ("leaks", "threats")
                for trait in sorted(getattr(target, attribute, ()))
            ),
            origin=inspect.getsourcefile(target) or target.__module__,
        )
        self._enter(entry, self._table())
        self._classes[name] = target

    def _check_type(self, name: str, target: object) -> None:
        base = _resolve(self._base, "base class")
        if not (isinstance(target, type) and issubclass(target, base)):
            raise RegistryError(
                f"The {self.kind} {name!r} must be a subclass of {self._base.replace(':', '.')}, "
                f"and {target!r} is not: derive it from that class."
            )

    def _unknown(self, name: str, known: list[str]) -> str:
        near = difflib.get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(known))}."
        )
        return f"There is no {self.kind} named {name!r}: {hint}"


def _resolve(target: str, what: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module of another package raises on import
        raise RegistryError(
            f"The {what} cannot be loaded from {target} ({type(error).__name__}: {error}): "
            "install what it needs, or mend it."
        ) from error


def _scan(package: str, registry: str) -> list[Entry]:
    """Read a registry's registrations in a package's files from their syntax trees."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    entries = []
    for folder in folders or []:
        for path in sorted(Path(folder).rglob("*.py")):
            relative = path.relative_to(folder).with_suffix("")
            module = ".".join([package, *relative.parts])
            for node in ast.parse(path.read_bytes()).body:
                if isinstance(node, ast.ClassDef):
                    entries += _registrations(node, registry, module, path)
    return entries


def _registrations(node: ast.ClassDef, registry: str, module: str, path: Path) -> list[Entry]:
    return [
        Entry(
            name=name.value,
            target=f"{module}:{node.name}",
            summary=_first_sentence(ast.get_docstring(node)),
            traits=_traits(node),
            origin=str(path),
        )
        for call in node.decorator_list
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "register"
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == registry
        for name in [*call.args, *(keyword.value for keyword in call.keywords)]
        if isinstance(name, ast.Constant) and isinstance(name.value, str)
    ]


def _traits(node: ast.ClassDef) -> tuple[str, ...]:
    """Return the members of Leak and Threat that the class body names, in lower case."""
    return tuple(
        item.attr.lower()
        for statement in node.body
        if isinstance(statement, ast.AnnAssign | ast.Assign) and statement.value
        for item in ast.walk(statement.value)
        if isinstance(item, ast.Attribute)
        and isinstance(item.value, ast.Name)
        and item.value.id in {"Leak", "Threat"}
    )


def _first_sentence(docstring: str | None) -> str:
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split())
    return paragraph.removesuffix(".")


def _entry_points(group: str | None) -> list[Entry]:
    if group is None:
        return []
    return [
        Entry(name=point.name, target=point.value, origin=f"entry point of {point.dist}")
        for point in importlib.metadata.entry_points(group=group)
    ]


def load_plugin(path: Path) -> types.ModuleType:
    """Import a plug-in file, so that its decorators register what it defines.

    Raises:
        RegistryError: The file is missing, cannot be imported, or registers nothing new.
    """
    if not path.is_file():
        raise RegistryError(f"The plug-in {path} does not exist: check the path after --plugin.")
    if path.suffix != ".py":
        raise RegistryError(f"The plug-in {path} is not a Python file: give a file ending in .py.")
    # Two files of one name in two folders are two modules.
    folder = hashlib.sha256(str(path.resolve().parent).encode()).hexdigest()[:8]
    name = f"veilbench_plugin_{path.stem}_{folder}"
    loader = _Loader(name, str(path))
    spec = importlib.machinery.ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    known = None if name in sys.modules else _targets()
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except RegistryError:
        raise
    except Exception as error:
        del sys.modules[name]
        raise RegistryError(
            f"The plug-in {path} fails on import ({type(error).__name__}: {error}): mend the file."
        ) from error
    if known == _targets():
        raise RegistryError(
            f"The plug-in {path} registers nothing: put `@DEFENSES.register(...)` or "
            "`@ATTACKS.register(...)` above its class."
        )
    return module


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a file and leaves no compiled copy beside it: the folder is the user's."""

    def set_data(self, *_: object, **__: object) -> None:
        """Write nothing."""


def _targets() -> set[str]:
    registries = (ATTACKS, DEFENSES, DATASETS, RECOGNIZERS, REFERENCES)
    return {entry.target for registry in registries for entry in registry.entries()}


ATTACKS = Registry("attack", "attacks", "attacks.base:Attack", "veilbench.attacks")
DEFENSES = Registry("defense", "defenses", "defenses.base:Defense", "veilbench.defenses")
DATASETS = Registry("dataset", "bench.datasets", "bench.datasets.base:Dataset")
RECOGNIZERS = Registry("recognizer", "bench.recognizers", "bench.recognizers.base:Recognizer")
REFERENCES = Registry("reference", "attacks", "attacks.base:Reference")
