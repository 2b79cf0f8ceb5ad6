"""DISCO: channels that tell more of the face than of the person are pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.leaks import Leak
from bench.networks import Standardize
from bench.registry import DEFENSES
from defenses.adversarial_training import AdversariallyTrained


@DEFENSES.register("disco")
@dataclass
class DISCO(AdversariallyTrained):
    """Channels of each map are pruned by a trained network (Singh et al., CVPR 2021).

    A small network reads the mean and the deviation of every channel of a map and scores the
    channels; those with the lowest scores become 0. Gradients pass the cut as if it were a sigmoid
    of the scores.

    Leaks: features. Secret: the trained network; which channels are missing shows in every record.
    Known weakness: channels are redundant, so what is kept holds the picture too, and a decoder
    trained on pruned maps finds it. Source: the paper's abstract and facts of its re-implementation
    in Crafter's repository (MIT).

    Args:
        pruned: Share of channels set to 0.
    """

    leaks = frozenset({Leak.FEATURES})
    weakest: ClassVar[Mapping[str, Any]] = {"pruned": 0}

    pruned: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def layer(self, channels: int) -> nn.Module:
        """Return the pruning network."""
        keep = channels - round(self.pruned * channels)
        return _Pruning(channels, keep, Standardize(self.mean, self.deviation))


class _Pruning(nn.Module):
    """Scores channels by their mean and deviation and keeps those with the highest scores."""

    def __init__(self, channels: int, keep: int, standardize: Standardize) -> None:
        super().__init__()
        self.keep = keep
        self.standardize = standardize
        self.score = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.ReLU(), nn.Linear(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        scaled = self.standardize(x)
        facts = torch.cat([scaled.mean((2, 3)), scaled.std((2, 3))], 1)
        soft = self.score(facts).sigmoid()
        hard = soft.new_zeros(soft.shape).scatter(1, soft.topk(self.keep, dim=1).indices, 1)
        # Forwards the cut itself, backwards the sigmoid.
        mask = hard + (soft - soft.detach() if self.training else 0)
        return x * mask[:, :, None, None]
