"""MinusFace: the difference between an image and what a generator can make of it, shuffled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bench.leaks import Leak
from bench.networks import channel_statistics, half_precision
from bench.registry import DEFENSES
from bench.training import fit
from defenses.adapted import STEM_IMAGES, Adapted, Server, regress_stem, standardize_channels
from defenses.base import Defender
from defenses.frequency import block_dct

BATCH = 8
"""Images per training step of the generator: each has 192 channels at 112x112."""


@DEFENSES.register("minusface")
@dataclass
class MinusFace(Adapted):
    """MinusFace (Mi et al., CVPR 2024, arXiv 2403.12457): an image minus its regeneration.

    Leaks: image. A U-Net g regenerates the image from its 192 block-DCT channels x while what
    remains, r = x - g(x), must still be recognised (stage 1: 5 |X - d(g(x))| plus the recognition
    loss of r, with d the inverse DCT). The record is d of the channels of r in an order drawn per
    image, clamped to [0, 1] (stage 2 trains the server on records). Secrets: the generator. The
    recognition loss is here 1 - cosine to the clean embedding in place of ArcFace, and the U-Net is
    narrower and shallower than the paper's 64 to 1024 channels, which a CPU does not train. Known
    weaknesses: linkage and regeneration (FaceLinkGen), embedding mapping (FEM), several records of
    one image.

    Args:
        width: Channels of the U-Net at 112x112; 64 in the paper.
        steps: Training steps of stage 1, 8 images each.
        generator_rate: Largest learning rate of stage 1.
    """

    leaks = frozenset({Leak.IMAGE})

    width: Annotated[int, Field(ge=4)] = 16
    steps: Annotated[int, Field(ge=0)] = 150
    generator_rate: Annotated[float, Field(gt=0)] = 1e-3

    @property
    def plain_probes(self) -> bool:
        """A record looks like an image, so what is compared is always a record."""
        return False

    def fit(self, world: Defender) -> None:
        """Train the generator, together with a recogniser of what it leaves (stage 1)."""
        super().fit(world)
        coefficients = block_dct.forward(world.images[:STEM_IMAGES])
        statistics = channel_statistics(coefficients)
        with torch.random.fork_rng():
            torch.manual_seed(world.seed)
            self.regenerate = Regenerator(self.width, *statistics).to(world.device)
        if self.steps:
            world.teach("generator", self.regenerate, partial(self._train, world))
        self.regenerate.eval().requires_grad_(False)

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 3, 112, 112) images in [0, 1]."""
        orders = torch.rand((len(x), 192), generator=generator).argsort(1)
        records = []
        for images, order in zip(x.split(BATCH), orders.to(x.device).split(BATCH), strict=True):
            coefficients = block_dct.forward(images)
            with torch.no_grad(), half_precision(x.device.type):
                rest = coefficients - self.regenerate(coefficients)
            shuffled = torch.stack([one[row] for one, row in zip(rest, order, strict=True)])
            records.append(block_dct.decode(shuffled).clamp(0, 1))
        return torch.cat(records)

    def _train(self, world: Defender, checkpoint: Path | None) -> None:
        images = world.images
        target = world.recognizer.leaking(Leak.TEMPLATE, images)
        statistics = self.regenerate.standardize.mean, self.regenerate.standardize.deviation
        server = Server(world.recognizer, *(part.flatten() for part in statistics))
        server.to(world.device).requires_grad_(False)
        regress_stem(server, block_dct.forward, images)
        server.stem.requires_grad_(True)

        def batch_loss() -> Tensor:
            rows = torch.randint(len(images), (BATCH,))
            coefficients = block_dct.forward(images[rows])
            with half_precision(world.device):
                made = self.regenerate(coefficients)
                found = server(coefficients - made)
            regeneration = functional.l1_loss(block_dct.decode(made), images[rows])
            recognition = 1 - functional.cosine_similarity(found.float(), target[rows]).mean()
            return 5 * regeneration + recognition

        learning = nn.ModuleList([self.regenerate, server.stem])
        fit(
            learning,
            batch_loss,
            steps=self.steps,
            rate=self.generator_rate,
            checkpoint=checkpoint,
        )


class Regenerator(nn.Module):
    """A U-Net from 192 channels to 192, which starts at zero: nothing is regenerated.

    Args:
        width: Channels at 112x112.
        mean: (192,) means of the channels.
        deviation: (192,) deviations of the channels.
    """

    def __init__(self, width: int, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.standardize = standardize_channels(mean, deviation)
        self.enter = _double(192, width)
        self.down = _double(width, 2 * width)
        self.low = _double(2 * width, 4 * width)
        self.lift = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.middle = _double(4 * width, 2 * width)
        self.rise = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave = nn.Sequential(_double(2 * width, width), nn.Conv2d(width, 192, 1))
        last = self.leave[1]
        nn.init.zeros_(last.get_parameter("weight"))
        nn.init.zeros_(last.get_parameter("bias"))

    def forward(self, coefficients: Tensor) -> Tensor:
        """Map (N, 192, 112, 112) coefficients to regenerated ones, zero at first."""
        x = self.standardize(coefficients).contiguous(memory_format=torch.channels_last)
        large = self.enter(x)
        half = self.down(functional.max_pool2d(large, 2))
        low = self.low(functional.max_pool2d(half, 2))
        half = self.middle(torch.cat([self.lift(low), half], 1))
        made = self.leave(torch.cat([self.rise(half), large], 1))
        return made.float() * self.standardize.deviation


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )
