"""What attacks and defenses share: parameters that are checked, hashed and shown."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import inspect
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bench.errors import UserError, first_fault

PLUGIN_CODE = (
    "attacks.",
    "defenses.",
    "bench.arcface",
    "bench.networks",
    "bench.subspace",
    "bench.training",
    "bench.recognizers.",
    "bench.metrics.",
)
"""Modules whose source can change what a plug-in computes; a change recomputes what used them."""


class Plugin:
    """Base of attacks and defenses: a dataclass whose fields are its parameters.

    Fields carry their type, default and limits (`Annotated[float, Field(gt=0)]`); `create` checks
    values against them. State learned in `fit` is kept in plain attributes, not in fields.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @classmethod
    def create(cls, where: str, parameters: dict[str, Any]) -> Self:
        """Return an instance with checked parameters.

        Args:
            where: What to name in a message: "defense 'advface'".
            parameters: Values by field name; missing ones take their defaults.

        Raises:
            UserError: A value has the wrong type or range, or there is no such parameter.
        """
        try:
            return TypeAdapter(cls).validate_python(parameters)
        except ValidationError as error:
            fault = first_fault(error)
            known = ", ".join(item.name for item in dataclasses.fields(cls)) or "none"  # type: ignore[arg-type]
            raise UserError(
                f"The parameter {fault.field!r} of {where} cannot be {fault.value!r} "
                f"({fault.reason}): its parameters are {known}."
            ) from error

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters by name, defaults included."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}  # type: ignore[arg-type]


def source_fingerprint(module_name: str) -> str:
    """Return the sha256 of the source of an imported module and of the plug-in code it uses.

    That is, transitively, what it imports at its top from veilbench's own plug-in code, from its
    own package, and from files beside it.
    """
    digest = hashlib.sha256()
    # In the order of names, not of paths: where a package is installed changes nothing.
    for _, path in sorted(_source_files(module_name, module_name, {}).items()):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _source_files(module_name: str, root: str, found: dict[str, Path]) -> dict[str, Path]:
    """Return the files of a module and, transitively, of the plug-in code that it imports."""
    if module_name not in found:
        module = sys.modules[module_name]
        found[module_name] = Path(inspect.getfile(module))
        for used in sorted(_imported(module)):
            if used.startswith(PLUGIN_CODE) or _belongs(used, root):
                _source_files(used, root, found)
    return found


def _imported(module: types.ModuleType) -> set[str]:
    """Return the loaded modules that a module's names come from, and that its top imports."""
    names = set()
    for value in vars(module).values():
        used = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        # A package has whichever of its modules anybody has imported: it need not use them.
        if isinstance(used, str) and not used.startswith(f"{module.__name__}."):
            names.add(used)
    # A number that is imported does not say where it comes from; the import does.
    for node in _import_statements(Path(inspect.getfile(module)).read_bytes()):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            start = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(start, module.__package__)
            names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return {name for name in names if name in sys.modules}


@cache
def _import_statements(source: bytes) -> list[ast.Import | ast.ImportFrom]:
    """Return the imports at the top of a module; many keys ask for those of the same source."""
    return [x for x in ast.parse(source).body if isinstance(x, ast.Import | ast.ImportFrom)]


def _belongs(module_name: str, root: str) -> bool:
    """Say whether a module is part of the package of a plug-in, or a file beside it."""
    if "." in root and module_name.partition(".")[0] == root.partition(".")[0]:
        return root.partition(".")[0] not in {"attacks", "bench", "defenses"}
    file, home = (getattr(sys.modules[name], "__file__", None) for name in (module_name, root))
    if file is None or home is None or "." in root:
        return False
    return Path(file).parent == Path(home).parent
