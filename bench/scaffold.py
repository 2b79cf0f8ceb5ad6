"""Plug-in files that run at once, for `veilbench new`."""

from __future__ import annotations

import re
from pathlib import Path

from bench.errors import UserError
from bench.registry import ATTACKS, DEFENSES

_DEFENSE = '''"""{name}: say in one sentence what it does to a stored map or template."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defender, Defense, draw_like


@DEFENSES.register("{name}")
@dataclass
class {title}(Defense):
    """Say what leaks, what is secret, the paper, and the known weaknesses.

    Args:
        strength: Size of the noise, in mean absolute values of the record.
    """

    leaks = frozenset({{Leak.FEATURES, Leak.TEMPLATE}})

    strength: Annotated[float, Field(ge=0)] = 0.5

    def fit(self, world: Defender) -> None:
        """Learn or draw secrets from the defender's own images (here: nothing)."""

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Turn features (N, C, H, W) or embeddings (N, D) into records."""
        return x + self.strength * x.abs().mean() * draw_like(x, generator)
'''

_ATTACK = '''"""{name}: say in one sentence how it gets from a record to a face."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import Attack
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Threat


@ATTACKS.register("{name}")
@dataclass
class {title}(Attack):
    """Say what it needs, and the paper.

    This start averages the attacker's images whose records are nearest to the leaked one.
    """

    leaks = frozenset({{Leak.IMAGE, Leak.FEATURES, Leak.TEMPLATE}})
    threats = frozenset({{Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER}})

    neighbors: int = 3

    def fit(self, attacker: Attacker) -> None:
        """Learn from what the threat grants: pairs of (records, images) of the attacker's own."""
        pairs = attacker.pairs()
        self.records = torch.cat([pair.records.flatten(1) for pair in pairs])
        self.images = torch.cat([pair.images for pair in pairs])

    def reconstruct(self, records: Tensor) -> Tensor:
        """Turn records (N, ...) into images (N, 3, 112, 112) in [0, 1]."""
        distances = torch.cdist(records.flatten(1), self.records)
        nearest = distances.topk(self.neighbors, largest=False).indices
        return self.images[nearest].mean(1)
'''

_CONTRACT = '''"""The contract of {name}: it runs, and its rows follow from raw values."""

from pathlib import Path

from bench.plan import load_suite, narrowed
from bench.registry import load_plugin
from bench.result_file import pack
from bench.run import run_suite
from bench.store import Store, default_root
from reports.submission import faults

UNREADABLE = "without knowing the defense they cannot be read"


def test_{stem}_keeps_the_contract(tmp_path: Path) -> None:
    load_plugin(Path(__file__).with_name("{stem}.py"))
    suite = narrowed(load_suite("smoke"), {defenses}, {attacks}, None)
    run_suite(suite, tmp_path, Store(default_root()), device="cpu", quiet=True)
    run = pack(tmp_path)
    assert faults(run) == []
    mine = [row for row in run.rows if row.{kind} == "{name}"]
    assert any(row.status == "ok" for row in mine)
    failed = [row.reason for row in mine if row.status == "error"]
    assert [reason for reason in failed if UNREADABLE not in reason] == []
'''


def write_plugin(kind: str, name: str, folder: Path) -> Path:
    """Write a new plug-in file.

    Args:
        kind: "defense" or "attack".
        name: Name to register it under.
        folder: Where to write.

    Returns:
        The path of the file.

    Raises:
        UserError: The name cannot be used, or the file exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UserError(
            f"The name {name!r} cannot be used: take lower-case letters, digits and single hyphens."
        )
    registry = DEFENSES if kind == "defense" else ATTACKS
    if name in registry.names():
        raise UserError(f"The {kind} {name!r} exists already: choose another name.")
    title = "".join(part.capitalize() for part in name.split("-"))
    template = _DEFENSE if kind == "defense" else _ATTACK
    path = folder / f"{name.replace('-', '_')}.py"
    return _write(path, template.format(name=name, title=title))


def write_contract_test(kind: str, name: str, plugin: Path) -> Path:
    """Write a test beside a plug-in file: pytest runs it in a small suite and checks its rows.

    Args:
        kind: "defense" or "attack".
        name: Name that the file registers.
        plugin: The file that `write_plugin` wrote.

    Returns:
        The path of the test.

    Raises:
        UserError: The file exists, or cannot be written.
    """
    chosen = {"defense": ([name], []), "attack": ([], [name])}[kind]
    defenses, attacks = (str(names).replace("'", '"') for names in chosen)
    fields = {"kind": kind, "name": name, "stem": plugin.stem}
    text = _CONTRACT.format(**fields, defenses=defenses, attacks=attacks)
    return _write(plugin.with_name(f"test_{plugin.name}"), text)


def _write(path: Path, text: str) -> Path:
    """Write a file that is not there."""
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"The file {path} exists already: choose another name.") from None
    except OSError as error:
        raise UserError(f"The file {path} cannot be written ({error.strerror}).") from error
    return path
