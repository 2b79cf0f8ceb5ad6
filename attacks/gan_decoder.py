"""A decoder of templates that is trained against a critic."""

from __future__ import annotations

from dataclasses import dataclass, field

from attacks.decoder import Decoder
from attacks.losses import Weights
from bench.leaks import Leak
from bench.registry import ATTACKS
from bench.threats import Threat


@ATTACKS.register("gan-decoder")
@dataclass
class GanDecoder(Decoder):
    """A decoder whose images must be accepted as the person and pass for photos.

    `decoder` with an identity loss through the recogniser under attack and the loss of a critic
    that learns to tell its images from photos, after Otroshi Shahreza and Marcel (NeurIPS 2023);
    their generator is a StyleGAN, this one is the decoder itself. The pixel loss holds it near the
    photo while the critic knows nothing yet.

    Args:
        network: "convolutions" or "eigenfaces", as in `decoder`.
        losses: Weights of pixel, ssim, perceptual, identity and adversarial losses.
        width: Channels of the convolutions at 28x28.
        components: Principal components of the eigenfaces.
        steps: Training steps.
        batch: Images of a step, each of which passes through the recogniser.
        rate: Largest learning rate of the one-cycle schedule.
    """

    leaks = frozenset({Leak.TEMPLATE})
    threats = frozenset({Threat.TRANSFER, Threat.ADAPTIVE, Threat.INSIDER})

    losses: Weights = field(
        default_factory=lambda: {"pixel": 1.0, "identity": 0.5, "adversarial": 0.02}
    )
