"""Adversarial learning of what is stored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bench.leaks import Leak
from bench.networks import Standardize
from bench.registry import DEFENSES
from defenses.adversarial_training import AdversariallyTrained


@DEFENSES.register("advlearning")
@dataclass
class AdvLearning(AdversariallyTrained):
    """An encoder trained against a reconstruction adversary (Xiao et al., AAAI 2020, 1911.10143).

    Leaks: features. Secret: the trained layer. Known weakness: the decoder in the loop is one
    decoder at one time; a decoder trained afterwards on the finished records sees more. Source: the
    paper's abstract and facts of its re-implementation in Crafter's repository (MIT). Here the
    encoder is the recogniser's head with a residual 3x3 convolution behind it, which starts at the
    identity.
    """

    leaks = frozenset({Leak.FEATURES})

    def layer(self, channels: int) -> nn.Module:
        """Return a residual convolution."""
        return _Residual(channels, self.mean, self.deviation)


class _Residual(nn.Module):
    """Adds a convolution of the standardised map, in deviations of each channel."""

    def __init__(self, channels: int, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.standardize = Standardize(mean, deviation)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.mix.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        moved: Tensor = self.mix(self.standardize(x)) * self.standardize.deviation
        return x + moved
