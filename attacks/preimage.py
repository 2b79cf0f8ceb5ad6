"""Pre-image search: an embedding that the defense's own code turns into the leaked record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from attacks.gradient import Gradient, falling
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Attacker, Right, Threat
from defenses.keyed import Key, Keyed

EMBEDDING_STEPS = 100
EMBEDDING_RATE = 0.04


@ATTACKS.register("preimage")
@dataclass
class Preimage(Gradient):
    """A search for the template behind a code, with the key, and then for a face that has it.

    For hashes (biohash, iom-grp, iom-urp, imm, diom, mlp-hash) what competes for each number of the
    code is compared with who won, as in Paik et al. (BMVC 2023); real codes (polyprotect,
    slerpface, random projections) are compared with those of the candidate. Candidates start at own
    templates that match best, those of a hash also at what its closed form gives back; they are
    pulled towards what templates are usually like; those that end best are averaged, so that what
    the record does not fix cancels. Needs the key: `insider`, or `adaptive` where keys are
    published; with other keys it finds nobody. Defenses without a key are met as `gradient` does.

    Args:
        components: Principal components, at most the number of attacker images less one.
        steps: Optimiser steps of the search for a face.
        rate: Learning rate of that search, in deviations of a component.
        prior: Weight of the mean squared way from the start, in deviations.
        shift: Largest shift in pixels, in both directions.
        restarts: Searches for each face; all but the first start a deviation beside the usual.
        starts: Own templates that the search for a template starts at.
        usual: Weight of the mean squared deviation from own templates, over all directions.
    """

    leaks = frozenset({Leak.TEMPLATE})
    threats = frozenset({Threat.ADAPTIVE, Threat.INSIDER})

    starts: Annotated[int, Field(ge=1)] = 4
    usual: Annotated[float, Field(ge=0)] = 0.1

    def fit(self, attacker: Attacker) -> None:
        """Learn faces and usual templates, and take the key in reach."""
        super().fit(attacker)
        inside = attacker.may(Right.DEPLOYED_INSTANCE)
        self.scheme = attacker.deployed_instance if inside else attacker.fresh_instances[0]
        if isinstance(self.scheme, Keyed):
            self.encode = None  # the key is searched through in the space of templates
        own = self.recognizer.leaking(Leak.TEMPLATE, attacker.images)
        self.own = functional.normalize(own, dim=1)
        self.mean = self.own.mean(0)
        spread = torch.cov(self.own.T)
        # A little more in every direction: there may be fewer own templates than directions.
        spread += 0.1 * spread.diagonal().mean() * torch.eye(len(spread), device=spread.device)
        self.precision = torch.linalg.inv(spread)

    def target(self, records: Tensor) -> Tensor:
        """Return the pre-images found."""
        if not isinstance(self.scheme, Keyed):
            return super().target(records)
        records = records.to(self.device)
        # Records under one key are searched together.
        parts = records.split(1) if self.scheme.own_keys else [records]
        return torch.cat([self._preimages(self.scheme, part) for part in parts])

    def _preimages(self, scheme: Keyed, records: Tensor) -> Tensor:
        key, codes = scheme.key_of(records[0]), scheme.codes(records)
        matches = scheme.match(self.own, codes, key)
        best = matches.topk(min(self.starts, len(self.own)), dim=0).indices.T
        starts = self.own[best]
        undone = scheme.undo(codes, key)
        # A hash has many valleys. The one under a real code's closed form fits its noise, too.
        if undone is not None and scheme.contest(self.own[:1], key) is not None:
            undone = self._upright(scheme, functional.normalize(undone, dim=1)[:, None], key)
            starts = torch.cat([undone, starts], 1)
        wanted = codes.repeat_interleave(starts.shape[1], 0)
        z = starts.flatten(0, 1).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=EMBEDDING_RATE)
        for step in range(EMBEDDING_STEPS):
            optimizer.param_groups[0]["lr"] = EMBEDDING_RATE * falling(step / EMBEDDING_STEPS)
            with torch.enable_grad():
                x = functional.normalize(z, dim=1)
                away = x - self.mean
                unusual = ((away @ self.precision) * away).mean(1)
                loss = mismatch(scheme, x, wanted, key) + self.usual * unusual
                optimizer.zero_grad()
                loss.sum().backward()
            optimizer.step()
        found = functional.normalize(z.detach(), dim=1).unflatten(0, starts.shape[:2])
        found = self._upright(scheme, found, key)
        losses = loss.detach().unflatten(0, starts.shape[:2])
        good = losses <= 1.05 * losses.amin(1, keepdim=True)
        return (found * good[..., None]).sum(1)

    def _upright(self, scheme: Keyed, found: Tensor, key: Key) -> Tensor:
        """Return templates (N, S, D) with the sign of usual ones, where codes do not tell it.

        Products of an even number of entries lose the sign; templates lie on one side.
        """
        if not torch.equal(scheme.encode(-self.own, key), scheme.encode(self.own, key)):
            return found
        return torch.where(found @ self.mean[:, None] < 0, -found, found)


def mismatch(scheme: Keyed, x: Tensor, codes: Tensor, key: Key) -> Tensor:
    """Return how far templates (N, D) are from making codes (N, K), differentiably, as (N,).

    Cross-entropy of who wins, at a temperature of one deviation of the competitors; or the squared
    error of a real code, relative to its size.
    """
    contest = scheme.contest(x, key)
    if contest is None:
        error = (scheme.encode(x, key) - codes).square().sum(1)
        return error / codes.square().sum(1)
    warm = (contest / contest.detach().std()).flatten(0, 1)
    surprise = functional.cross_entropy(warm, codes.long().flatten(), reduction="none")
    return surprise.unflatten(0, codes.shape).mean(1)
