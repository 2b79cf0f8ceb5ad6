"""Recognisers for transformed images: a new stem on the pre-trained network, then distillation.

A transform near a linear one needs no training from scratch: the first convolution's output is
regressed on the new channels in closed form, which takes seconds, and the whole network is then
drawn towards its own clean embeddings, and apart by ArcFace if that is wanted. Per-image randomness
is averaged over in both steps.
"""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from bench.arcface import ArcFace
from bench.errors import UserError
from bench.leaks import Leak
from bench.networks import Standardize, channel_statistics, half_precision
from bench.recognizers import iresnet
from bench.recognizers.base import Recognizer
from bench.recognizers.contract import read_weights
from bench.training import fit
from defenses.base import Defender, Defense

KERNEL = 3
"""Side of the stem's neighborhoods in pixels."""

STEM_IMAGES, STEM_POSITIONS = 60, 300
"""What the stem is regressed on: images, and positions of each."""

BATCH = 32

SCALE, MARGIN = 64.0, 0.5
"""Of ArcFace, as in its paper."""

Representation = Callable[[Tensor], Tensor]
"""Maps images (N, 3, 112, 112) in [0, 1] to what the server's stem takes, (N, C, 112, 112)."""


def standardize_channels(mean: Tensor, deviation: Tensor) -> Standardize:
    """Return the layer for channels of very unlike energy: hardly any counts as 1e-4 of the most.

    Args:
        mean: (C,) means of the channels.
        deviation: (C,) deviations of the channels.
    """
    return Standardize(mean, deviation.clamp_min(1e-4 * float(deviation.max())))


class Server(nn.Module):
    """A recogniser whose first convolution reads other channels than an image's.

    Args:
        recognizer: The pre-trained recogniser; it is copied.
        mean: (C,) means of the channels.
        deviation: (C,) deviations of the channels.
    """

    def __init__(self, recognizer: Recognizer, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.standardize = standardize_channels(mean, deviation)
        outputs = recognizer.first_convolution.out_channels
        self.stem = nn.Conv2d(len(mean), outputs, KERNEL, padding=KERNEL // 2)
        self.body = copy.deepcopy(recognizer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, 112, 112) to embeddings of unit length."""
        x = self.prepare(x).contiguous(memory_format=torch.channels_last)
        # As precise as the recogniser: in single precision the stem costs more than all the rest.
        with torch.autocast(x.device.type, torch.bfloat16, self.body.precision == "bfloat16"):
            first = self.stem(x).float()
        embedding: Tensor = self.body.after_first(first)
        return embedding

    def prepare(self, x: Tensor) -> Tensor:
        """Return what the stem takes of (N, C, 112, 112). Default: all of it, standardised."""
        standard: Tensor = self.standardize(x)
        return standard


class TrainedServer(nn.Module):
    """A recogniser of transformed images that `veilbench train` made from scratch.

    Args:
        path: The file that it wrote for the defense.
        sha256: Hash of the file in hexadecimal.

    Raises:
        UserError: The file is not that one, or was trained on plain images.
    """

    def __init__(self, path: str, sha256: str) -> None:
        super().__init__()
        data, _ = read_weights(Path(path), sha256)
        state = iresnet.read_state_dict(data, path)
        if not {"standardize.mean", "standardize.deviation"} <= state.keys():
            raise UserError(
                f"{path} has no statistics of channels: train it with the defense's preset."
            )
        mean, deviation = state.pop("standardize.mean"), state.pop("standardize.deviation")
        self.standardize = Standardize(mean.flatten(), deviation.flatten())
        self.network = iresnet.network(iresnet.depth_of(state, path), mean.numel())
        iresnet.load(self.network, state, path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, 112, 112) to embeddings of unit length."""
        x = self.standardize(x).contiguous(memory_format=torch.channels_last)
        return functional.normalize(self.network(x), dim=1)


@torch.no_grad()
def regress_stem(server: Server, represent: Representation, images: Tensor) -> None:
    """Set a server's stem to the ridge regression of the clean stem's output on neighborhoods.

    The positions are drawn from torch's global generator.

    Args:
        server: The server, on the device of the images.
        represent: The transform; its randomness, if any, is drawn anew for every batch.
        images: (N, 3, 112, 112) in [0, 1]; the first 60 are used.
    """
    inputs = server.stem.in_channels * KERNEL**2 + 1
    gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=images.device)
    moment = gram.new_zeros(inputs, server.stem.out_channels)
    for batch in images[:STEM_IMAGES].split(4):
        clean = server.body.first_convolution(server.body.first_input(batch))
        x = functional.pad(server.prepare(represent(batch)), [KERNEL // 2] * 4)
        places = torch.randint(112, (2, len(batch), STEM_POSITIONS))
        rows, columns = places.to(images.device)
        number = torch.arange(len(batch), device=images.device)[:, None]
        neighborhoods = torch.stack(
            [
                x[number, :, rows + down, columns + right]
                for down in range(KERNEL)
                for right in range(KERNEL)
            ],
            dim=-1,
        )
        left = functional.pad(neighborhoods.flatten(2), [0, 1], value=1.0).flatten(0, 1)
        wanted = clean[number, :, rows, columns].flatten(0, 1)
        gram += (left.T @ left).double()
        moment += (left.T @ wanted).double()
    gram.diagonal().add_(1.0)
    solution = torch.cholesky_solve(moment, torch.linalg.cholesky(gram)).T.float()
    server.stem.weight.copy_(solution[:, :-1].reshape(server.stem.weight.shape))
    server.stem.get_parameter("bias").copy_(solution[:, -1])


class Course(nn.Module):
    """A server, the people that teach it, and how far it is: all that a checkpoint needs.

    Args:
        server: What learns.
        target: (N, D) clean embeddings of images.
        people: (N,) number of the person that each shows, from 0.
    """

    def __init__(self, server: Server, target: Tensor, people: Tensor) -> None:
        super().__init__()
        self.server = server
        self.head = ArcFace(int(people.max()) + 1, target.shape[1], SCALE, MARGIN).to(target.device)
        # Everybody's place among the clean embeddings: random ones would first have to be learned.
        with torch.no_grad():
            self.head.centers.zero_().index_add_(0, people, target)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))


def distill(
    server: Server,
    represent: Representation,
    world: Defender,
    *,
    epochs: int,
    rate: float,
    arcface: float = 0.0,
    checkpoint: Path | None = None,
) -> None:
    """Draw a server's embeddings of transformed images towards the clean embeddings of the same.

    Loss 1 - cosine, and ArcFace over the defender's people if it has a weight; AdamW with a
    one-cycle rate; half precision where the device has it. All draws are of torch's global
    generators.

    Args:
        server: The server, on the device of the images.
        represent: The transform, drawn anew in every epoch.
        world: The defender, whose images and people it learns from.
        epochs: Passes over the images; with 0 nothing changes.
        rate: Largest learning rate.
        arcface: Weight of the ArcFace loss.
        checkpoint: File to continue from, if it is there.
    """
    images = world.images
    orders = (torch.randperm(len(images)) for _ in range(epochs))
    batches = [rows for order in orders for rows in order.split(BATCH)]
    if not batches:
        return
    target = server.body.leaking(Leak.TEMPLATE, images)
    _, numbers = np.unique(world.identities, return_inverse=True)
    people = torch.from_numpy(numbers).to(images.device)
    course = Course(server, target, people).requires_grad_(False)

    def batch_loss() -> Tensor:
        done = course.get_buffer("batches")
        rows = batches[int(done)]
        done += 1
        x = represent(images[rows])
        with half_precision(images.device.type):
            found = server(x).float()
        loss = 1 - functional.cosine_similarity(found, target[rows]).mean()
        return loss + arcface * course.head(found, people[rows]) if arcface else loss

    server.requires_grad_(True)
    course.head.requires_grad_(arcface > 0)
    with torch.enable_grad():
        fit(
            course,
            batch_loss,
            steps=len(batches),
            rate=rate,
            optimizer=torch.optim.AdamW,
            checkpoint=checkpoint,
        )
    server.requires_grad_(False)


@dataclass
class Adapted(Defense, ABC):
    """Base of defenses that transmit a transformed image to a recogniser adapted to it.

    The server is trained when something is first compared: an attacker that only makes records of
    its own never pays for it. Its embeddings are comparable with clean ones, unless it was trained
    from scratch.

    Args:
        epochs: Passes of the distillation over the defender's images; 0 leaves the ridge stem.
        rate: Largest learning rate of the distillation.
        arcface: Weight, beside 1 - cosine, of an ArcFace loss (scale 64, margin 0.5) over the
            defender's people.
        weights: File of `veilbench train` with the defense's preset: the server in place of an
            adapted one.
        weights_sha256: Hash of that file in hexadecimal, needed with it.
    """

    epochs: Annotated[int, Field(ge=0)] = 1
    rate: Annotated[float, Field(gt=0)] = 2e-4
    arcface: Annotated[float, Field(ge=0)] = 0.0
    weights: str = ""
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        if bool(self.weights) is not bool(self.weights_sha256):
            raise ValueError("weights and weights_sha256 go together")

    @property
    def plain_probes(self) -> bool:
        """A server from scratch has a space of its own, in which only records are compared."""
        return not self.weights

    def fit(self, world: Defender) -> None:
        """Keep what the server will be trained on."""
        self._world = world

    def comparable(self, records: Tensor) -> Tensor:
        """Return embeddings: the server's of records, the recogniser's of plain images."""
        if records.shape[1] == 3 and self.plain_probes:
            return self.recognizer.embed(records)
        with torch.no_grad():
            embeddings: Tensor = self.server(self.server_input(records))
        return embeddings

    def server_input(self, records: Tensor) -> Tensor:
        """Return what the server's stem takes, (N, C, 112, 112). Default: the records."""
        return records

    def new_server(self, mean: Tensor, deviation: Tensor) -> Server:
        """Return an untrained server for channels of means and deviations (C,)."""
        return Server(self.recognizer, mean, deviation)

    @cached_property
    def server(self) -> nn.Module:
        """The recogniser that reads records: adapted, or trained from scratch."""
        if self.weights:
            trained = TrainedServer(self.weights, self.weights_sha256)
            return trained.to(self._world.device).requires_grad_(False).eval()
        world = self._world

        def represent(images: Tensor, generator: torch.Generator) -> Tensor:
            with torch.no_grad():
                return self.server_input(self.protect(images, generator=generator))

        first = represent(world.images[:STEM_IMAGES], world.generator())
        server = self.new_server(*channel_statistics(first)).to(world.device)
        server.requires_grad_(False)

        def lesson(checkpoint: Path | None) -> None:
            made = partial(represent, generator=torch.default_generator)
            regress_stem(server, made, world.images)
            distill(
                server,
                made,
                world,
                epochs=self.epochs,
                rate=self.rate,
                arcface=self.arcface,
                checkpoint=checkpoint,
            )

        world.teach("server", server, lesson)
        return server.eval()
