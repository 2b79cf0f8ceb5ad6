"""One dataset, recogniser, split and seed, made ready: crops, embeddings, thresholds, records.

Everything expensive is an artifact of the store. Fitted defenses are kept in memory only: they are
cheap to make again beside the records that come from them, which are stored.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError, validate_call
from torch import Tensor

from bench import assets
from bench.datasets.align import ALIGNMENT, Aligner
from bench.datasets.base import Dataset, Indices, Split, check_disjoint
from bench.datasets.images import decode
from bench.errors import UserError, first_fault
from bench.keys import derived_seed, digest
from bench.leaks import Leak
from bench.linkage import Pairs, linked_pairs
from bench.memory import keep_freed_memory
from bench.metrics import tar_at_far
from bench.metrics.verification import OperatingPoint
from bench.plan import NamedRecognizer, Spec, Suite
from bench.plugin import source_fingerprint
from bench.profile import MODELS, profile
from bench.recognizers.base import CROP, Recognizer
from bench.registry import DATASETS, RECOGNIZERS
from bench.store import Artifact, Store
from defenses.base import Defender, Defense, Make

BATCH = 32
"""Records are made this many at a time, always: a batch draws its randomness as a whole, so its
size is part of the result and not a matter of taste."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Team:
    """The defender's or the attacker's own people.

    Attributes:
        images: (N, 3, 112, 112) in [0, 1].
        identities: (N,) names.
        content: Hash of the images.
    """

    images: Tensor
    identities: NDArray[np.str_]
    content: str


@dataclass(frozen=True)
class Member:
    """A photo in a role.

    Attributes:
        photo: Its name in the dataset.
        identity: Whom it shows.
        content: The sha256 of its crop.
    """

    photo: str
    identity: str
    content: str


class World:
    """The scene of all cells of one suite and seed.

    Args:
        suite: The suite.
        seed: Seed of the split, and root of all other seeds.
        store: Where artifacts are kept.
        device: Torch device.
        data_root: Folder of a dataset that is not shipped.
        progress: Told in a few words what is being made.
    """

    def __init__(
        self,
        suite: Suite,
        seed: int,
        store: Store,
        device: str,
        data_root: Path | None,
        progress: Progress = lambda _: None,
    ) -> None:
        keep_freed_memory()  # Batches of maps come and go by the thousand from here on.
        self.suite = suite
        self.seed = seed
        self.store = store
        self.device = device
        self.progress = progress
        self.dataset: Dataset = DATASETS.get(suite.dataset)(data_root)
        self.split: Split = self.dataset.split(suite.split, seed)
        self._used: Indices = np.unique(np.concatenate(list(_roles(self.split).values())))
        self._position = {int(photo): row for row, photo in enumerate(self._used)}
        self._fitted: dict[str, Defense] = {}
        self._embedded: dict[str, Tensor] = {}
        self._operating_points: dict[str, OperatingPoint] = {}
        self._check_roles()
        self.public = self._public()

    # --- photos ---------------------------------------------------------------------------------

    @cached_property
    def _contents(self) -> list[str]:
        """The sha256 of every file."""
        files = (self._read(row) for row in range(len(self._used)))
        return [hashlib.sha256(file).hexdigest() for file in files]

    def _read(self, row: int) -> bytes:
        return self.dataset.read(self.dataset.photos[self._used[row]])

    @cached_property
    def _crops(self) -> Tensor:
        """Aligned photos (N, 3, 112, 112), uint8; each is aligned once for all runs."""

        def make(rows: list[int]) -> Tensor:
            self.progress(f"aligning {len(rows)} photos")
            crops = torch.empty(len(rows), *CROP, dtype=torch.uint8)
            with profile.span("align", MODELS):
                aligner = Aligner()
                for place, row in enumerate(rows):
                    where = self.dataset.photos[self._used[row]].key
                    with profile.span("read and decode photos"):
                        photo = decode(self._read(row), where=where)
                    crop = aligner.crop(photo, where)
                    crops[place] = torch.from_numpy(crop).permute(2, 0, 1)
            return crops

        return self.store.rows("crops", _alignment(), self._contents, make)

    @cached_property
    def _photos_key(self) -> str:
        return digest([_alignment(), self._contents])

    def images(self, photos: Indices | Sequence[int]) -> Tensor:
        """Return aligned photos as (N, 3, 112, 112) in [0, 1]."""
        return in_unit_range(self.crops(photos))

    def crops(self, photos: Indices | Sequence[int]) -> Tensor:
        """Return aligned photos as (N, 3, 112, 112) of 8 bits: a quarter of the memory."""
        rows = [self._position[int(photo)] for photo in photos]
        return self._crops[rows].to(self.device)

    def identities(self, photos: Indices | Sequence[int]) -> NDArray[np.str_]:
        """Return whom photos show."""
        return np.array([self.dataset.photos[int(photo)].identity for photo in photos])

    def _check_roles(self) -> None:
        check_disjoint(
            {
                role: [(member.identity, member.content) for member in members]
                for role, members in self.members().items()
            }
        )

    def members(self) -> dict[str, list[Member]]:
        """Return the photos of every role that may share nobody with another."""
        roles = _roles(self.split)
        return {
            role: [self._member(int(photo)) for photo in roles[role]]
            for role in ("defender", "attacker", "victims")
        }

    def _member(self, photo: int) -> Member:
        crop = self._crops[self._position[photo]]
        about = self.dataset.photos[photo]
        content = hashlib.sha256(crop.numpy().tobytes()).hexdigest()
        return Member(about.key, about.identity, content)

    @property
    def scene(self) -> str:
        """Hash of the crops and of who plays which role: what scores depend on."""
        split = self.split
        roles = [split.probes, *split.mates, split.gallery, split.calibration]
        return digest([self._photos_key, [role.tolist() for role in roles]])

    @cached_property
    def attacker(self) -> Team:
        """The attacker's own people."""
        return self._team(self.split.attacker)

    @cached_property
    def defender(self) -> Team:
        """The defender's own people."""
        return self._team(self.split.defender)

    def _team(self, photos: Indices) -> Team:
        images, identities = self.images(photos), self.identities(photos)
        if self.suite.split.mirror:
            images = torch.cat([images, images.flip(3)])
            identities = np.concatenate([identities, identities])
        content = digest([self._photos_key, photos.tolist(), self.suite.split.mirror])
        return Team(images, identities, content)

    # --- recognisers ----------------------------------------------------------------------------

    @cached_property
    def recognizer(self) -> Recognizer:
        """The recogniser under attack."""
        return make_recognizer(self.suite.recognizer, self.device)

    def _public(self) -> list[Recognizer]:
        """Return the other recognisers that attackers have.

        Raises:
            UserError: One of them is under attack or a judge, by its weights.
        """
        found = []
        for item in self.suite.public:
            recognizer = make_recognizer(item, self.device)
            for label, judge in self.judges.items():
                if judge.weights_sha256 == recognizer.weights_sha256:
                    raise UserError(
                        f"The public recognizer {item.label} has the weights of {label}, which "
                        "judges: no judge may be in an attacker's hands. Leave it out of one of "
                        "the two lists."
                    )
            found.append(recognizer)
        return found

    @cached_property
    def judges(self) -> dict[str, Recognizer]:
        """The recogniser under attack and the judges beside it, by label."""
        judges = {item.label: make_recognizer(item, self.device) for item in self.suite.judges}
        return {self.suite.recognizer.label: self.recognizer, **judges}

    def embeddings(self, judge: str, photos: Indices | Sequence[int]) -> Tensor:
        """Return a judge's embeddings (N, D) of photos."""
        rows = [self._position[int(photo)] for photo in photos]
        return self._embeddings(judge)[rows].to(self.device)

    def _embeddings(self, judge: str) -> Tensor:
        """Return a judge's embeddings of all photos; each photo is embedded once for all runs."""
        recognizer = self.judges[judge]
        if judge not in self._embedded:
            fields = {**_alignment(), "recognizer": recognizer_fields(recognizer)}

            def make(rows: list[int]) -> Tensor:
                self.progress(f"embedding {len(rows)} photos with {judge}")
                with profile.span(f"embed photos with {judge}", MODELS):
                    parts = [self._crops[part] for part in torch.tensor(rows).split(BATCH)]
                    return torch.cat([_embedded(recognizer, part, self.device) for part in parts])

            self._embedded[judge] = self.store.rows("embeddings", fields, self._contents, make)
        return self._embedded[judge]

    def operating_point(self, judge: str) -> OperatingPoint:
        """Return a judge's threshold at the suite's FMR, from people who are no victims."""
        if judge not in self._operating_points:
            self._operating_points[judge] = self._measure_operating_point(judge)
        return self._operating_points[judge]

    def _measure_operating_point(self, judge: str) -> OperatingPoint:
        photos = self.split.calibration
        found = self.embeddings(judge, photos)
        similarity = self.judges[judge].similarity(found, found).cpu().double().numpy()
        left, right = np.triu_indices(len(photos), k=1)
        people = self.identities(photos)
        same = people[left] == people[right]
        scores = similarity[left, right]
        return tar_at_far(scores[same], scores[~same], [self.suite.fmr])[0]

    def credits(self) -> list[str]:
        """Return whom to credit for data and weights."""
        carried = [assets.manifest()[name].full_credit for name in ("yunet", "stlpips-alex")]
        judges = [judge.credit for judge in self.judges.values()]
        return [self.dataset.credit, *carried, *judges]

    # --- leaking objects, defenses, records -----------------------------------------------------

    def deployed(self, spec: Spec, leak: Leak) -> Defense:
        """Return the defense with the defender's secrets."""
        return self.instance(spec, leak, "defender", 0)

    def instance(self, spec: Spec, leak: Leak, owner: str, number: int) -> Defense:
        """Return a fitted instance: the deployed one of the defender, or one of the attacker's."""
        fields = self.instance_fields(spec, leak, owner, number)
        key = digest(fields)
        if key not in self._fitted:
            blank = spec.create() if owner == "defender" else self.deployed(spec, leak).fresh()
            team = self.defender if owner == "defender" else self.attacker
            seed = derived_seed(fields)
            self.progress(f"fitting {spec.name} of the {owner}")
            world = Defender(
                leak,
                team.images,
                team.identities,
                self.recognizer,
                seed,
                self.device,
                keep=partial(_trained_part, self.store, fields),
            )
            with seeded(seed), profile.span(f"fit {spec.name}", MODELS):
                self._fitted[key] = blank.setup(world)
        return self._fitted[key]

    def instance_fields(self, spec: Spec, leak: Leak, owner: str, number: int) -> dict[str, Any]:
        """Return everything that can change the secrets of an instance."""
        team = self.defender if owner == "defender" else self.attacker
        return {
            "defense": spec.fields,
            "leak": leak,
            "recognizer": recognizer_fields(self.recognizer),
            "team": team.content,
            "defender": self.defender.content,
            "owner": owner,
            "number": number,
            "seed": self.seed,
        }

    def record_fields(
        self, spec: Spec, leak: Leak, content: str, owner: str, number: int = 0
    ) -> dict[str, Any]:
        """Return everything that can change the records that an instance makes of images.

        Args:
            spec: The defense.
            leak: The object it protects.
            content: Hash of the images.
            owner: Whose instance: "defender" (deployed) or "attacker" (fresh).
            number: Which of the attacker's instances.
        """
        instance = self.instance_fields(spec, leak, owner, number)
        return {"instance": instance, "images": content, "batch": BATCH}

    def victim_records(self, spec: Spec, leak: Leak, enrolment: int = 0) -> Artifact:
        """Return the "records" that the deployed defense stores of the probes.

        Args:
            spec: The defense.
            leak: The object it protects.
            enrolment: Which time the same photos are enrolled; each has randomness of its own.
        """
        probes = self.split.probes
        self.progress(f"protecting {len(probes)} probes with {spec.name}")
        fields = self.record_fields(spec, leak, self._content(probes), "defender")
        if enrolment:
            fields["enrolment"] = enrolment
        return self.store.artifact(
            "records",
            fields,
            lambda: protect(self.deployed(spec, leak), self.images(probes), draws(fields)),
        )

    @property
    def pair_photos(self) -> Indices:
        """The photos of the split's pairs, sorted."""
        return np.unique(np.concatenate([self.split.pairs.left, self.split.pairs.right]))

    def pair_scores(self, spec: Spec, leak: Leak) -> Artifact:
        """Return the scores (P,) of the split's pairs with a defense, and what it costs.

        "stored-vs-stored" compares two records, "stored-vs-fresh" a record with an unprotected
        probe, each where the defense allows that. Records are not kept: only their comparables
        matter.
        """
        pairs, photos = self.split.pairs, self.pair_photos
        fields = {
            **self.record_fields(spec, leak, self._content(photos), "defender"),
            "pairs": [pairs.left.tolist(), pairs.right.tolist()],
        }

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            defense = self.deployed(spec, leak)
            self.progress(f"protecting {len(photos)} photos with {spec.name}")
            crops = self.crops(photos)
            made, facts = protect(defense, crops, draws(fields), keep=defense.comparable)
            stored = made["records"].to(self.device)
            probes = {"stored-vs-stored": stored} if defense.mutual else {}
            if defense.plain_probes:
                parts = (in_unit_range(part) for part in crops.split(BATCH))
                clean = (self.recognizer.leaking(leak, part) for part in parts)
                fresh_parts = [comparables(defense, part) for part in clean]
                probes["stored-vs-fresh"] = torch.cat(fresh_parts)
            left, right = np.searchsorted(photos, pairs.left), np.searchsorted(photos, pairs.right)
            scores = {
                way: _listed(defense.score, fresh, right, stored, left)
                for way, fresh in probes.items()
            }
            facts["bytes_per_record"] = defense.bytes_per_record(torch.Size(facts["shape"]))
            facts["random"] = not torch.equal(*(self._one_record(defense, n) for n in (0, 1)))
            return scores, {**facts, "found": defense.found}

        return self.store.artifact("pair-scores", fields, make)

    def _one_record(self, defense: Defense, number: int) -> Tensor:
        """Return a record of one photo; another number draws other randomness."""
        image = self.images(self.pair_photos[:1])
        return protect(defense, image, draws(["one record", number]))[0]["records"]

    def linkage_scores(self, spec: Spec, leak: Leak) -> Artifact:
        """Return how alike ("scores", (P,)) the records of two applications are.

        Every person of the split's pairs is with a pair of applications, which have keys of their
        own and what the deployed instance has learned. `linked_pairs` says which of the records
        are compared.
        """
        photos, pairs = self.pair_photos, self.linked_pairs
        fields = {
            **self.record_fields(spec, leak, self._content(photos), "defender"),
            "pairs": [pairs.left.tolist(), pairs.right.tolist(), pairs.homes.tolist()],
        }

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
            self.progress(f"linking applications of {spec.name}")
            defense, crops = self.deployed(spec, leak), self.crops(photos)
            mine, others = (
                _renewed_records(defense, crops, pairs.homes, draws([fields, side]))
                for side in ("first", "second")
            )
            with torch.no_grad():
                scores = _listed(defense.linkage, mine, pairs.left, others, pairs.right)
            return {"scores": scores}, {}

        return self.store.artifact("linkage", fields, make)

    @cached_property
    def linked_pairs(self) -> Pairs:
        """Which records of two applications are compared."""
        return linked_pairs(self.identities(self.pair_photos))

    def _content(self, photos: Indices) -> str:
        return digest([self._photos_key, photos.tolist()])


def _renewed_records(
    defense: Defense, images: Tensor, homes: Indices, generator: torch.Generator
) -> Tensor:
    """Return the records (N, ...) of images, those of every home (N,) under a key of its own."""
    order = np.argsort(homes, kind="stable")
    made = [
        protect(defense.renewed(generator), images[homes == home], generator)[0]["records"]
        for home in np.unique(homes)
    ]
    return torch.cat(made)[np.argsort(order)].to(images.device)


def _listed(
    score: Callable[[Tensor, Tensor], Tensor],
    probes: Tensor,
    of: Indices,
    records: Tensor,
    against: Indices,
) -> Tensor:
    """Return the scores (P,) of listed pairs, a record at a time.

    Pairs of all with all would be the square of the photos, which takes some schemes days.

    Args:
        score: Gives the (P, R) scores of P probes and R records.
        probes: (N, ...) probes.
        of: (P,) the number of each pair's probe.
        records: (N, ...) records.
        against: (P,) the number of each pair's record.
    """
    scores = torch.empty(len(of))
    order = np.argsort(against, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(against[order])) + 1):
        record = against[pairs[0]]
        scores[pairs] = score(probes[of[pairs]], records[record : record + 1])[:, 0].float().cpu()
    return scores


def _trained_part(store: Store, fields: dict[str, Any], name: str, make: Make) -> dict[str, Tensor]:
    """Return the weights of a trained part of an instance, from the store or made now."""
    part = {"instance": fields, "part": name}
    made = store.artifact("parts", part, lambda: (make(store.unfinished("parts", part)), {}))
    return made.tensors


def make_recognizer(item: NamedRecognizer, device: str) -> Recognizer:
    """Return a recogniser by name and parameters, on a device.

    Raises:
        UserError: It has no such parameter, or a value is wrong.
    """
    kind = RECOGNIZERS.get(item.name)
    recognizer: Recognizer = kind.__new__(kind)
    try:
        # pydantic checks calls of functions and methods, not of classes.
        validate_call(recognizer.__init__)(**item.parameters)  # type: ignore[misc]
    except ValidationError as error:
        fault = first_fault(error)
        known = ", ".join(inspect.signature(kind).parameters)
        raise UserError(
            f"The parameter {fault.field!r} of recognizer {item.name!r} is wrong "
            f"({fault.reason}): its parameters are {known}."
        ) from error
    return recognizer.to(device)


def recognizer_fields(recognizer: Recognizer) -> dict[str, Any]:
    """Return what identifies a recogniser in a key."""
    return {
        "name": recognizer.name,
        "weights": recognizer.weights_sha256,
        "cut": list(recognizer.feature_shape),
        "precision": recognizer.precision,
        "settings": recognizer.settings,
        "source": source_fingerprint(type(recognizer).__module__),
    }


def stored_records(
    store: Store, defense: Defense, images: Tensor, fields: dict[str, Any]
) -> Artifact:
    """Return the "records" that an instance makes of images, from the store or made now."""
    return store.artifact("records", fields, lambda: protect(defense, images, draws(fields)))


def protect(
    defense: Defense,
    images: Tensor,
    generator: torch.Generator,
    keep: Callable[[Tensor], Tensor] = lambda records: records,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Protect images batch by batch and check the records.

    Args:
        defense: A fitted defense.
        images: (N, 3, 112, 112) in [0, 1], or 8-bit crops.
        generator: Source of all per-record randomness.
        keep: What to keep of each batch of records.

    Returns:
        The kept ("records"), and facts: shape of a record, and seconds that protection alone took.
    """
    kept, seconds, shape, done = torch.empty(0), 0.0, torch.Size(), 0
    with torch.no_grad(), profile.span(f"protect by {type(defense).__name__}", MODELS):
        for batch in images.split(BATCH):
            clean = defense.recognizer.leaking(defense.leak, in_unit_range(batch))
            started = time.perf_counter()
            records = defense.protect(clean, generator=generator)
            seconds += time.perf_counter() - started
            check_records(defense, records, len(batch))
            shape = records.shape[1:]
            part = keep(records.float())
            if done == 0:  # All at once: gathered parts would take twice the memory.
                kept = torch.empty(len(images), *part.shape[1:], dtype=part.dtype)
            kept[done : done + len(part)] = part
            done += len(part)
    facts = {"shape": list(shape), "protect_seconds": seconds, "count": len(images)}
    return {"records": kept}, facts


def in_unit_range(images: Tensor) -> Tensor:
    """Return images in [0, 1], made from 8 bits if need be."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def comparables(defense: Defense, records: Tensor) -> Tensor:
    """Return what a defense compares records by, made batch by batch on the recogniser's device."""
    parts = records.to(next(defense.recognizer.parameters()).device).split(BATCH)
    with torch.no_grad():
        return torch.cat([defense.comparable(part) for part in parts])


def draws(fields: object) -> torch.Generator:
    """Return the source of randomness that belongs to what the fields describe."""
    return torch.Generator().manual_seed(derived_seed(fields))


def check_records(defense: Defense, records: Tensor, count: int) -> None:
    """Refuse records that are not one finite tensor per row.

    Raises:
        ValueError: The defense returned something else.
    """
    name = type(defense).__name__
    if not isinstance(records, Tensor) or records.ndim < 2 or len(records) != count:
        shape = list(getattr(records, "shape", []))
        raise ValueError(f"{name}.protect returned shape {shape} for {count} inputs")
    # A sum takes a thirtieth of the time, and can be finite only where all numbers are.
    if not torch.isfinite(records.sum()) and not torch.isfinite(records).all():
        raise ValueError(f"{name}.protect returned values that are not finite")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside a block and restore them afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _roles(split: Split) -> dict[str, Indices]:
    return {
        "defender": split.defender,
        "attacker": split.attacker,
        "victims": split.evaluation,
        "others": np.concatenate([split.gallery, split.calibration]),
    }


def _alignment() -> dict[str, Any]:
    """Return what can change a crop beside the photo."""
    return {"alignment": ALIGNMENT, "detector": assets.manifest()["yunet"].sha256}


def _embedded(recognizer: Recognizer, crops: Tensor, device: str) -> Tensor:
    """Return embeddings of one batch of crops, filled up to its full size.

    The last bits of an embedding depend on how many images are in a batch, though not on which:
    with every batch full, a photo has the same embedding in every run.
    """
    full = crops[torch.arange(BATCH).clamp(max=len(crops) - 1)]
    return recognizer.leaking(Leak.TEMPLATE, in_unit_range(full.to(device)))[: len(crops)].cpu()
