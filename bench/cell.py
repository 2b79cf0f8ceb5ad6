"""One cell: an attack learns what its threat grants, reconstructs the probes, and is scored."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from attacks.base import Attack, Reference, Victims
from bench.curves import Curve
from bench.datasets.base import Indices
from bench.keys import derived_seed, digest
from bench.plan import Cell
from bench.plugin import source_fingerprint
from bench.profile import MODELS, profile
from bench.recognizers.base import CROP
from bench.registry import REFERENCES
from bench.scoring import Scorer, Values, perceptual_nets, to_bytes, worst_case
from bench.store import Artifact, Store
from bench.threats import RIGHTS, Attacker, Held, Meter, Right, Threat
from bench.training import recorded
from bench.world import (
    BATCH,
    World,
    comparables,
    draws,
    protect,
    recognizer_fields,
    seeded,
    stored_records,
)
from defenses.base import Defense

GUESSED = "other-person"
"""The floor that is drawn at random."""

RECONSTRUCT_BATCH = 64
"""Probes handed to an attack at once."""


class Cells:
    """Runs the cells of one world, sharing what they have in common.

    Args:
        world: The world.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._trained: tuple[str, Attack, list[Curve]] | None = None
        self.scorer = Scorer(world)

    def fields(self, cell: Cell) -> dict[str, Any]:
        """Return everything that can change a cell's reconstructions."""
        return {
            **self._training_fields(cell),
            "deployed": self.world.instance_fields(cell.defense, cell.leak, "defender", 0),
            "probes": [int(photo) for photo in self.world.split.probes],
        }

    def _training_fields(self, cell: Cell) -> dict[str, Any]:
        """Return everything that can change a trained attack: under `transfer`, no defense."""
        world, suite = self.world, self.world.suite
        knows_defense = cell.threat is not Threat.TRANSFER
        fields = {
            "attack": cell.attack.fields,
            "leak": cell.leak,
            "threat": cell.threat,
            "attacker": world.attacker.content,
            "recognizer": recognizer_fields(world.recognizer),
            "seed": cell.seed,
            "defense": cell.defense.fields if knows_defense else None,
            "defender": world.defender.content if knows_defense else None,
            "budget": [suite.fresh_instances, suite.query_budget, suite.score_budget],
        }
        # Left out where there are none: fields seed the attack, and earlier results stay the same.
        if world.public:
            fields["public"] = [recognizer_fields(one) for one in world.public]
        return fields

    def reconstructions(self, cell: Cell) -> Artifact:
        """Return the 8-bit reconstructions ("images") of the probes, made or from the store."""
        return self.world.store.artifact(
            "reconstructions", self.fields(cell), lambda: self._attack(cell)
        )

    def values(self, cell: Cell) -> tuple[Artifact, Values]:
        """Return a cell's reconstructions and its raw values per probe."""
        made = self.reconstructions(cell)
        return made, self._scored(made.key, made.tensors["images"], None)

    def _scored(self, key: str, images: Tensor, shown: Indices | None) -> Values:
        world = self.world
        judges = [recognizer_fields(judge) for judge in world.judges.values()]
        fields = {
            "images": key,
            "judges": judges,
            "fmr": world.suite.fmr,
            "scene": world.scene,
            "perceptual": perceptual_nets(),
            "source": source_fingerprint("bench.scoring"),
        }

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            values = self.scorer.probe_values(images, shown)
            return {name: torch.from_numpy(column.copy()) for name, column in values.items()}, {}

        tensors = world.store.artifact("scores", fields, make).tensors
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def _attack(self, cell: Cell) -> tuple[dict[str, Tensor], dict[str, Any]]:
        world = self.world
        records = world.victim_records(cell.defense, cell.leak)
        attacker = self._attacker(cell, records.tensors["records"])
        leaked = self._leaked(cell, records.tensors["records"])
        check_readable(cell, attacker, leaked)
        attack, curves = self._trained_attack(cell, attacker)
        name = f"reconstruct by {cell.attack.name}"
        with seeded(derived_seed([self.fields(cell), "reconstruct"])), profile.span(name, MODELS):
            images = [
                check_images(cell, attack.reconstruct(part.to(world.device)), len(part))
                for part in leaked.split(RECONSTRUCT_BATCH)
            ]
        training = [curve.model_dump() for curve in curves]
        facts = {"calls_spent": attacker.calls_spent, "training": training}
        return {"images": to_bytes(torch.cat(images))}, facts

    def _leaked(self, cell: Cell, records: Tensor) -> Tensor:
        """Return what the attack gets to see: records, or handles where only scores leak.

        An attack that reads several records of a probe gets them beside each other, (N, n, ...).
        """
        if cell.threat is Threat.SCORE:
            return torch.arange(len(records))
        count = cell.attack.create().enrolments
        if count == 1:
            return records
        others = [
            self.world.victim_records(cell.defense, cell.leak, enrolment).tensors["records"]
            for enrolment in range(1, count)
        ]
        return torch.stack([records, *others], 1)

    def _trained_attack(self, cell: Cell, attacker: Attacker) -> tuple[Attack, list[Curve]]:
        fields = self._training_fields(cell)
        key = digest(fields)
        metered = cell.threat in {Threat.QUERY, Threat.SCORE}
        if self._trained is None or self._trained[0] != key or metered:
            attack: Attack = cell.attack.create()
            self.world.progress(f"training {cell.attack.name} under {cell.threat}")
            with (
                seeded(derived_seed(fields)),
                profile.span(f"train {cell.attack.name}", MODELS),
                recorded() as curves,
            ):
                attack.fit(attacker)
            # Only the last one: cells that share an attacker come one after the other.
            self._trained = key, attack, curves
        return self._trained[1:]

    def _attacker(self, cell: Cell, stored: Tensor) -> Attacker:
        """Return an attacker that holds what its threat grants, and nothing else."""
        world, suite, team = self.world, self.world.suite, self.world.attacker
        defense, leak, rights = cell.defense, cell.leak, RIGHTS[cell.threat]

        def held(owner: str, number: int) -> Held:
            instance = world.instance(defense, leak, owner, number)
            fields = world.record_fields(defense, leak, team.content, owner, number)
            return Held(instance, partial(_own_records, world.store, instance, team.images, fields))

        granted: dict[str, Any] = {}
        if Right.RECOGNIZER in rights:
            granted["recognizer"] = world.recognizer
        if Right.FRESH_INSTANCES in rights:
            granted["fresh"] = [held("attacker", n) for n in range(suite.fresh_instances)]
        if Right.DEPLOYED_INSTANCE in rights:
            granted["deployed"] = held("defender", 0)
        if Right.QUERIES in rights:
            encoder = partial(_protect, world.deployed(defense, leak), draws([cell.seed, "query"]))
            granted["query"] = Meter(encoder, suite.query_budget, "query")
        if Right.SCORES in rights:
            server = world.deployed(defense, leak)
            enrolled = comparables(server, stored)
            matcher = partial(_match, server, enrolled, draws([cell.seed, "score"]))
            granted["score"] = Meter(matcher, suite.score_budget, "score")
        return Attacker(
            cell.threat,
            leak,
            team.images,
            team.identities,
            seed=derived_seed(self._training_fields(cell)),
            device=world.device,
            public=world.public,
            **granted,
        )

    # --- references -----------------------------------------------------------------------------

    def reference(self, name: str, draw: int = 0) -> tuple[Artifact, Values]:
        """Return the images and raw values of a floor or ceiling, drawn anew for each number."""
        world = self.world
        kind: type[Reference] = REFERENCES.get(name)
        mates = world.split.other_photos
        fields = {
            "reference": name,
            "source": source_fingerprint(kind.__module__),
            "scene": world.scene,
            "attacker": world.attacker.content,
            "seed": world.seed,
            **({"draw": draw} if draw else {}),
        }

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            victims = Victims(world.images(world.split.probes), world.images(mates))
            images = kind().images(victims, world.attacker.images, derived_seed(fields))
            return {"images": to_bytes(images)}, {}

        made = world.store.artifact("references", fields, make)
        shown = mates if kind.shows_mates else None
        return made, self._scored(made.key, made.tensors["images"], shown)

    def guesses(self, count: int) -> tuple[str, Values]:
        """Return what the best of several blind guesses scores, per probe and metric, and its key.

        The best of several attacks is above each of them even if none has read anything. This is
        the floor that went through the same maximum: the mean face, and as many photos of other
        people for each probe as there are attacks.
        """
        found = [self.reference("mean-face")]
        found += [self.reference(GUESSED, draw) for draw in range(count)]
        key = digest(["guesses", [made.key for made, _ in found]])
        return key, worst_case(values for _, values in found)


def _own_records(store: Store, defense: Defense, images: Tensor, fields: dict[str, Any]) -> Tensor:
    return stored_records(store, defense, images, fields).tensors["records"]


def _protect(defense: Defense, noise: torch.Generator, images: Tensor) -> Tensor:
    """Return records of images, as the deployed encoder would answer a query: noise drawn anew."""
    return protect(defense, images, noise)[0]["records"]


def _match(
    defense: Defense, enrolled: Tensor, noise: torch.Generator, handles: Tensor, images: Tensor
) -> Tensor:
    """Return the match score of each image against what is stored under its handle."""
    clean = defense.recognizer.leaking(defense.leak, images)
    with torch.no_grad():
        probes = defense.probe(clean, generator=noise)
        held = enrolled[handles.to(enrolled.device)]
        blocks = zip(probes.split(BATCH), held.split(BATCH), strict=True)
        return torch.cat([defense.score(*block).diagonal() for block in blocks])


def check_readable(cell: Cell, attacker: Attacker, leaked: Tensor) -> None:
    """Refuse records that an attacker who knows no defense could not take for the clean object.

    Raises:
        ValueError: The shapes differ under `transfer`.
    """
    if cell.threat is Threat.TRANSFER:
        clean = attacker.clean(attacker.images[:1]).shape[1:]
        if leaked.shape[1:] != clean:
            raise ValueError(
                f"records of {cell.defense.name} have shape {list(leaked.shape[1:])} where the "
                f"undefended {cell.leak} has {list(clean)}: without knowing the defense they "
                "cannot be read"
            )


def check_images(cell: Cell, images: Tensor, count: int) -> Tensor:
    """Refuse what is not one finite image in [0, 1] per record.

    Raises:
        ValueError: The attack returned something else.
    """
    if not isinstance(images, Tensor) or tuple(images.shape) != (count, *CROP):
        shape = list(getattr(images, "shape", []))
        raise ValueError(
            f"{cell.attack.name}.reconstruct returned shape {shape}, not {[count, *CROP]}"
        )
    if not torch.isfinite(images).all():
        raise ValueError(f"{cell.attack.name}.reconstruct returned values that are not finite")
    if images.min() < 0 or images.max() > 1:
        raise ValueError(f"{cell.attack.name}.reconstruct returned values outside [0, 1]")
    return images.detach().float().cpu()
