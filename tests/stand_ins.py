"""What tests put in the place of the real thing: a recogniser without weights, an attacker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional

from bench.recognizers.base import Recognizer
from bench.threats import Attacker, Threat

if TYPE_CHECKING:
    from bench.leaks import Leak
    from bench.world import World


class Means(Recognizer):
    """A map is made of the means of blocks, an embedding is the mean color."""

    name = "means"
    asset = "none"
    feature_shape = (3, 14, 14)
    embedding_size = 3

    def head(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 8)

    def tail(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


def attacker_in(world: World, threat: Threat, leak: Leak, **rights: Any) -> Attacker:
    """Return an attacker with its photos of the world, its recogniser, and further rights."""
    team = world.attacker
    rights = {"recognizer": world.recognizer} | rights
    return Attacker(threat, leak, team.images, team.identities, seed=0, device="cpu", **rights)
