"""Training a recogniser from scratch on RecordIO: IResNet, ArcFace, and the papers' schedules.

The set is MS1M, CASIA-WebFace or another in the format of `bench.datasets.recordio`. A preset named
after a defense trains the server of what that defense transmits; "clean" trains on plain images.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from bench.arcface import ArcFace
from bench.datasets.recordio import IndexedRecords
from bench.errors import DataError, UserError
from bench.leaks import Leak
from bench.networks import Standardize, channel_statistics, half_precision
from bench.precision import full_float32
from bench.recognizers import iresnet
from bench.recognizers.base import CROP, Recognizer
from bench.registry import DEFENSES, RECOGNIZERS
from bench.store import atomic_path
from bench.training import fit
from defenses.base import Defender

Represent = Callable[[Tensor], Tensor]
"""Maps images (N, 3, 112, 112) in [0, 1] to what the network takes, (N, C, 112, 112)."""

DEFENDER_IMAGES = 256
"""Images of the set that a defense learns its secrets from, and that channels are measured on."""

SEED = 1337
"""Of weights, order and randomness, as in the papers' code."""

DECODERS = 8
"""Threads that decode images."""


@dataclass(frozen=True)
class Preset:
    """How a paper trains (Tencent TFace, `recognition/tasks`).

    Attributes:
        margin: ArcFace's margin in radians.
        rate: Learning rate at first; it falls to a tenth at every milestone.
        copies: Records made of an image in a batch, each with randomness of its own.
        epochs: Passes over the set.
        milestones: Epochs after which the rate falls.
        batch: Images per step.
        scale: ArcFace's scale.
        momentum: Of stochastic gradient descent.
        decay: Weight decay.
    """

    margin: float = 0.5
    rate: float = 0.1
    copies: int = 1
    epochs: int = 24
    milestones: tuple[int, ...] = (10, 18, 22)
    batch: int = 64
    scale: float = 64.0
    momentum: float = 0.9
    decay: float = 5e-4


PRESETS = {
    "clean": Preset(),
    "dctdp": Preset(margin=0.4),
    "partialface": Preset(copies=3),
    "minusface": Preset(rate=0.01, copies=3),
}
"""By defense. PartialFace's paper makes 18 records of an image, its released code 3."""


class Pupil(nn.Module):
    """A network, the head that teaches it, and how far it is: all that a checkpoint needs.

    Args:
        depth: Of the IResNet, a key of `iresnet.BLOCKS`.
        statistics: Mean and deviation (C,) of the channels.
        classes: Number of identities.
        preset: Scale and margin of the head.
    """

    def __init__(
        self, depth: int, statistics: tuple[Tensor, Tensor], classes: int, preset: Preset
    ) -> None:
        super().__init__()
        mean, deviation = statistics
        self.standardize = Standardize(mean, deviation.clamp_min(1e-4 * float(deviation.max())))
        self.network = iresnet.network(depth, len(mean))
        self.head = ArcFace(classes, 512, preset.scale, preset.margin)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, 112, 112) to embeddings (N, 512)."""
        x = self.standardize(x).contiguous(memory_format=torch.channels_last)
        embeddings: Tensor = self.network(x)
        return embeddings.float()


class FaceSet:
    """The images of a RecordIO file in an order of its own for every epoch.

    Args:
        path: The `.rec` file, with its `.idx` beside it.

    Attributes:
        keys: (N,) keys of the images.
        labels: (N,) whom they show, from 0.
        classes: Number of identities.

    Raises:
        DataError: A file cannot be read, or shows fewer than two people.
    """

    def __init__(self, path: Path) -> None:
        self._records = IndexedRecords(path)
        self._path = path
        self._shuffled: tuple[int, NDArray[np.int64]] = -1, np.empty(0, np.int64)
        self.keys: NDArray[np.int64] = self._records.image_keys()
        people = [self._records.identity(int(key)) for key in self.keys]
        known, self.labels = np.unique(people, return_inverse=True)
        self.classes = len(known)
        if self.classes < 2:
            raise DataError(f"{path} shows {self.classes} people: give a set of two or more.")

    def images(self, rows: NDArray[np.int64], pool: ThreadPoolExecutor) -> Tensor:
        """Return images (N, 3, 112, 112) in [0, 1].

        Raises:
            DataError: One cannot be decoded, or is not 112x112.
        """
        made = list(pool.map(self._image, rows.tolist()))
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255

    def _image(self, row: int) -> NDArray[np.uint8]:
        key = int(self.keys[row])
        image = self._records.image(key)
        if image.shape != (*CROP[1:], CROP[0]):
            height, width = image.shape[:2]
            raise DataError(
                f"{self._path}, record {key} has {height}x{width} pixels where 112x112 belong: "
                "give a set of aligned faces."
            )
        return image

    def batch(self, number: int, size: int) -> NDArray[np.int64]:
        """Return the rows of a batch, counted over all epochs; none is larger than the size."""
        epoch, place = divmod(number, self.per_epoch(size))
        return np.array_split(self._order(epoch), self.per_epoch(size))[place]

    def per_epoch(self, size: int) -> int:
        """Return the number of batches of an epoch."""
        return -(-len(self.keys) // size)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return all rows in the order of an epoch, remembered until another is asked for."""
        if self._shuffled[0] != epoch:
            order = np.random.default_rng([SEED, epoch]).permutation(len(self.keys))
            self._shuffled = epoch, order
        return self._shuffled[1]


def pretrain(
    records: Path,
    out: Path,
    *,
    preset: str,
    depth: int,
    epochs: int | None,
    device: str,
    progress: Callable[[str], None],
) -> Path:
    """Train an IResNet from scratch, or go on from the checkpoint beside its file.

    Args:
        records: The `.rec` file.
        out: The `.safetensors` file to write, in insightface's names; with a preset of a defense
            also `standardize.mean` and `standardize.deviation` of its channels.
        preset: A key of `PRESETS`.
        depth: A key of `iresnet.BLOCKS`.
        epochs: Another number of passes than the preset's; milestones move in proportion.
        device: Torch device.
        progress: Told how far it is.

    Raises:
        UserError: There is no such preset or depth, the file is there already or cannot be written,
            or the set cannot be used.
    """
    plan = _plan(preset, depth, epochs)
    if out.exists():
        raise UserError(f"{out} is there already: give another file with --out, or delete it.")
    if not out.parent.is_dir():
        raise UserError(f"The folder {out.parent} is not there: make it, or give another --out.")
    faces = FaceSet(records)
    progress(f"{len(faces.keys):,} images of {faces.classes:,} people")
    torch.manual_seed(SEED)
    with ThreadPoolExecutor(DECODERS) as pool:
        first = faces.images(faces.batch(0, DEFENDER_IMAGES), pool).to(device)
        represent = _representation(preset, first, device)
        statistics = _statistics(preset, represent, first)
        pupil = Pupil(depth, statistics, faces.classes, plan).to(device).train()
        lesson = partial(_loss, pupil, faces, represent, plan, pool)
        steps = plan.epochs * faces.per_epoch(plan.batch)
        fit(
            pupil,
            lesson,
            steps=steps,
            rate=plan.rate,
            optimizer=partial(_descent, plan),
            schedule=partial(_falling, plan),
            checkpoint=out.with_suffix(".checkpoint"),
            progress=progress,
        )
    _write(pupil, preset, out)
    return out


def _plan(preset: str, depth: int, epochs: int | None) -> Preset:
    if preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}: choose one of {', '.join(PRESETS)}.")
    if depth not in iresnet.BLOCKS:
        known = ", ".join(map(str, iresnet.BLOCKS))
        raise UserError(f"There is no IResNet of depth {depth}: choose one of {known}.")
    plan = PRESETS[preset]
    if epochs is None:
        return plan
    milestones = tuple(round(place * epochs / plan.epochs) for place in plan.milestones)
    return replace(plan, epochs=epochs, milestones=milestones)


def _representation(preset: str, images: Tensor, device: str) -> Represent:
    if preset == "clean":
        return lambda batch: batch
    recognizer: Recognizer = RECOGNIZERS.get("sface")().to(device)
    people = np.array(["defender"] * len(images))
    defense: Any = DEFENSES.get(preset)()
    defense.setup(Defender(Leak.IMAGE, images, people, recognizer, SEED, device))

    @torch.no_grad()
    def represent(batch: Tensor) -> Tensor:
        made: Tensor = defense.protect(batch, generator=torch.default_generator)
        taken: Tensor = defense.server_input(made)
        return taken

    return represent


def _statistics(preset: str, represent: Represent, images: Tensor) -> tuple[Tensor, Tensor]:
    if preset == "clean":  # as insightface has it, so that its loaders can read the result
        half = torch.full((3,), 0.5, device=images.device)
        return half, half
    return channel_statistics(represent(images[:32]))


def _loss(
    pupil: Pupil, faces: FaceSet, represent: Represent, plan: Preset, pool: ThreadPoolExecutor
) -> Tensor:
    """Return the loss of the next batch: half of its images mirrored, copied, and transformed."""
    device = pupil.head.centers.device
    done = pupil.get_buffer("batches")
    rows = faces.batch(int(done), plan.batch)
    done += 1
    images = faces.images(rows, pool).to(device)
    mirrored = (torch.rand(len(images)) < 0.5).to(device)[:, None, None, None]
    images = torch.where(mirrored, images.flip(3), images).repeat_interleave(plan.copies, 0)
    labels = torch.from_numpy(faces.labels[rows]).to(device).repeat_interleave(plan.copies, 0)
    x = represent(images)
    with half_precision(device.type):
        embeddings = pupil(x)
    with full_float32():
        loss: Tensor = pupil.head(embeddings, labels)
    return loss


def _descent(plan: Preset, weights: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, rate, plan.momentum, weight_decay=plan.decay)


def _falling(plan: Preset, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    marks = [round(steps * epoch / plan.epochs) for epoch in plan.milestones]
    return MultiStepLR(optimizer, marks, gamma=0.1)


def _write(pupil: Pupil, preset: str, out: Path) -> None:
    state = pupil.network.state_dict()
    if preset != "clean":
        state |= {f"standardize.{n}": part for n, part in pupil.standardize.state_dict().items()}
    tensors = {name: part.contiguous().cpu() for name, part in state.items()}
    with atomic_path(out) as path:
        save_file(tensors, path, metadata={"preset": preset})
