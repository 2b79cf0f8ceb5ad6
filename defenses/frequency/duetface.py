"""DuetFace: high frequencies to the server, low ones to a model of the client's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bench.leaks import Leak
from bench.networks import channel_statistics
from bench.recognizers.base import Recognizer
from bench.registry import DEFENSES
from defenses.adapted import STEM_IMAGES, Adapted, Server, distill, regress_stem
from defenses.base import Defender
from defenses.frequency import block_dct

CLIENT = (0, 1, 2, 3, 4, 5, 8, 9, 16, 24)
"""Channels of a color that stay with the client."""

SERVER = tuple(channel for channel in block_dct.ALL if channel not in CLIENT)

STAGES = 4
"""Masks of a record: the last maps of the client at 112, 56, 28 and 14 pixels."""


@DEFENSES.register("duetface")
@dataclass
class DuetFace(Adapted):
    """DuetFace (Mi et al., MM 2022, arXiv 2207.07340): 54 channels per color and face masks.

    Leaks: image. The client keeps the ten low frequencies of every color, runs a small model on
    them, and sends the server the others with masks of where that model looks at four stages: the
    mean of its maps between 0 and 1, cut to the face. There the server's maps become x (1 + w m),
    with a weight w that is learned from 0. Secrets: the client's model, of little worth, as it
    follows from the recogniser and any faces. Here it is the recogniser, itself a MobileFaceNet,
    adapted to the low frequencies; the face is a fixed oval of the aligned crop in place of the
    hull of landmarks; and the server's maps are not passed through a sigmoid, which a network
    trained before would not survive. Known weakness: what is sent determines the image but for a
    few smooth directions (rank 195 of 196 on 14 x 14 pixels).

    Args:
        client_epochs: Passes over the defender's images to train the client; it is warmed up for 24
            and then frozen in the paper.
    """

    leaks = frozenset({Leak.IMAGE})

    client_epochs: Annotated[int, Field(ge=0)] = 1

    def fit(self, world: Defender) -> None:
        """Train the client: the recogniser adapted to the low frequencies."""
        super().fit(world)
        statistics = channel_statistics(_low(world.images[:STEM_IMAGES]))
        client = Server(world.recognizer, *statistics).to(world.device).requires_grad_(False)

        def lesson(checkpoint: Path | None) -> None:
            regress_stem(client, _low, world.images)
            epochs, rate = self.client_epochs, self.rate
            distill(client, _low, world, epochs=epochs, rate=rate, checkpoint=checkpoint)

        world.teach("client", client, lesson)
        self.client = client.eval()

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 166, 112, 112): 162 coefficients, color by color, and the masks."""
        return torch.cat([block_dct.forward(x, SERVER), self._masks(x)], 1)

    def new_server(self, mean: Tensor, deviation: Tensor) -> Server:
        """Return a server that follows the masks."""
        return MaskedServer(self.recognizer, mean[:-STAGES], deviation[:-STAGES])

    def hypotheses(self) -> list[list[int]]:
        """Return the channels of a color that a record may hold, in order."""
        return [list(SERVER)]

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return the bytes of the coefficients, and of each mask at its own resolution."""
        pixels = block_dct.SIDE**2
        masks = sum(pixels / 4**stage for stage in range(STAGES))
        return 4.0 * (3 * len(SERVER) * pixels + masks)

    @torch.no_grad()
    def _masks(self, images: Tensor) -> Tensor:
        """Return (N, 4, 112, 112) masks of the client, each enlarged to the largest."""
        seen: list[Tensor] = []

        def look(stage: int, x: Tensor) -> Tensor:
            mean = x.float().mean(1, keepdim=True)
            low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
            seen.append((mean - low) / (high - low).clamp_min(1e-6))
            return x

        with before_halving(self.client, look):
            self.client(_low(images))
        large = [functional.interpolate(mask, (block_dct.SIDE,) * 2) for mask in seen]
        return torch.cat(large, 1) * _face().to(images.device)


class MaskedServer(Server):
    """A server whose maps at four stages are weighed by the masks that follow the coefficients.

    Args:
        recognizer: The pre-trained recogniser; it is copied.
        mean: (C,) means of the coefficients.
        deviation: (C,) deviations of the coefficients.
    """

    def __init__(self, recognizer: Recognizer, mean: Tensor, deviation: Tensor) -> None:
        super().__init__(recognizer, mean, deviation)
        self.weights = nn.Parameter(torch.zeros(STAGES))

    def prepare(self, x: Tensor) -> Tensor:
        """Return the coefficients of (N, C + 4, 112, 112), standardised."""
        return super().prepare(x[:, :-STAGES])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C + 4, 112, 112) to embeddings of unit length."""
        masks = x[:, -STAGES:]

        def attend(stage: int, x: Tensor) -> Tensor:
            height, width = x.shape[2:]
            mask = functional.adaptive_avg_pool2d(masks[:, stage : stage + 1], (height, width))
            return x * (1 + self.weights[stage] * mask).to(x.dtype)

        with before_halving(self, attend):
            return super().forward(x)


@contextmanager
def before_halving(network: nn.Module, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Let a function change, in a block, what enters the first four convolutions that halve.

    Args:
        network: A network of maps.
        change: Maps (stage, map (N, C, H, W)) to the map that goes on.
    """
    halving = [part for part in network.modules() if isinstance(part, nn.Conv2d) and _halves(part)]

    def hook(stage: int, _: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        return change(stage, inputs[0])

    with ExitStack() as hooks:
        for stage, part in enumerate(halving[:STAGES]):
            hooks.enter_context(part.register_forward_pre_hook(partial(hook, stage)))
        yield


def _halves(part: nn.Conv2d) -> bool:
    """Say whether a convolution halves the resolution, and is no shortcut."""
    return part.stride == (2, 2) and part.kernel_size != (1, 1)


def _low(images: Tensor) -> Tensor:
    return block_dct.forward(images, CLIENT)


@cache
def _face() -> Tensor:
    """Return 1 inside the oval (112, 112) of brows, cheeks and chin in an aligned crop, else 0."""
    row, column = torch.meshgrid(*[torch.arange(block_dct.SIDE)] * 2, indexing="ij")
    return ((((row - 74) / 40) ** 2 + ((column - 56) / 38) ** 2) <= 1).float()
