"""What every defense offers: records made from a leaking object, and how records are compared."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.leaks import Leak
from bench.plugin import Plugin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bench.recognizers.base import Recognizer


Weights = dict[str, Tensor]
Make = Callable[[Path | None], Weights]
"""Makes weights, going on from a checkpoint at a path if there is one."""
Keep = Callable[[str, Make], Weights]


def _keep_nothing(_: str, make: Make) -> Weights:
    return make(None)


@dataclass(frozen=True)
class Defender:
    """What a defense may learn its secrets from: images of the defender's own people.

    Attributes:
        leak: The object to protect.
        images: (N, 3, 112, 112) in [0, 1].
        identities: (N,) names.
        recognizer: The undefended recogniser.
        seed: Seed of the secrets; another seed gives other secrets.
        device: Torch device to work on.
        keep: Return the tensors of a trained part by its name, from the store or made now.
    """

    leak: Leak
    images: Tensor
    identities: NDArray[np.str_]
    recognizer: Recognizer
    seed: int
    device: str
    keep: Keep = _keep_nothing

    def generator(self) -> torch.Generator:
        """Return a new CPU generator under the seed."""
        return torch.Generator().manual_seed(self.seed)

    def teach(self, name: str, part: nn.Module, lesson: Callable[[Path | None], object]) -> None:
        """Give a part the weights that a lesson leaves in it, from the store or learned now.

        Args:
            name: Tells the parts of one defense apart.
            part: What learns.
            lesson: Trains the part, and draws from torch's global generators, which are under the
                seed. It gets the file in which `bench.training.fit` may leave checkpoints.
        """

        def make(checkpoint: Path | None) -> Weights:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                lesson(checkpoint)
            return {name: tensor.contiguous() for name, tensor in part.state_dict().items()}

        part.load_state_dict(self.keep(name, make))


@dataclass
class Defense(Plugin, ABC):
    """Turns images, features or embeddings into records, and records into something comparable.

    A defense is a dataclass: its fields are its parameters. `fit` keeps secrets in attributes.

    Attributes:
        leaks: The objects it can protect.
        weakest: Parameters at which records are the clean objects, if there are such.
        strongest: Parameters at which records tell nobody apart, if there are such.
        needs: Module of an optional extra that it cannot do without, if there is one.
        leak: The object that this instance protects, which is what `protect` receives.
        recognizer: The undefended recogniser. Both are set by `setup`.
    """

    leaks: ClassVar[frozenset[Leak]]
    weakest: ClassVar[Mapping[str, Any]] = {}
    strongest: ClassVar[Mapping[str, Any]] = {}
    needs: ClassVar[str] = ""

    @property
    def plain_probes(self) -> bool:
        """Whether a record can be compared with an unprotected probe.

        Where it cannot (a hash under a key), a probe is protected before it is compared.
        """
        return True

    @property
    def mutual(self) -> bool:
        """Whether two records can be compared with one another.

        Where every record has a key of its own they cannot: the matcher protects a plain probe
        under the key of the record that it is compared with.
        """
        return True

    @property
    def renewable(self) -> bool:
        """Whether a stolen record can be revoked: the same face, another key, another record."""
        return False

    @property
    def found(self) -> dict[str, float]:
        """What `fit` settled that is no secret and no parameter, for the results. Default: none."""
        return {}

    @final
    def setup(self, world: Defender) -> Self:
        """Bind to a recogniser and learn the secrets. The harness calls this once."""
        self.leak = world.leak
        self.recognizer = world.recognizer
        self.fit(world)
        return self

    def fit(self, world: Defender) -> None:
        """Learn or draw the secrets. Default: there are none."""

    @abstractmethod
    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Turn a batch into records.

        Args:
            x: (N, 3, 112, 112) images in [0, 1], (N, C, H, W) features, or (N, D) embeddings of
                unit length, by `leak`.
            generator: CPU generator of all per-record randomness.

        Returns:
            (N, ...) float32 records, one per row of x.
        """

    def comparable(self, records: Tensor) -> Tensor:
        """Turn records (or clean objects of the same kind) into embeddings or codes (N, D).

        Default: what the recogniser makes of them.
        """
        match self.leak:
            case Leak.IMAGE:
                return self.recognizer.embed(records)
            case Leak.FEATURES:
                return self.recognizer.tail(records)
            case Leak.TEMPLATE:
                return records

    def probe(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return what a fresh probe is compared as: plain where the defense allows, else protected.

        Args:
            x: (N, ...) clean objects, as `protect` receives them.
            generator: CPU generator of all randomness.
        """
        return self.comparable(x if self.plain_probes else self.protect(x, generator=generator))

    def score(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the (P, R) similarity of comparables. Default: cosine."""
        return functional.normalize(probes, dim=1) @ functional.normalize(references, dim=1).T

    def linkage(self, records: Tensor, others: Tensor) -> Tensor:
        """Return the (N, M) similarity by which records of two applications can be linked.

        The linker has both databases and whatever the handling of keys publishes, and no secret.
        Default: the system's own comparison.

        Args:
            records: (N, ...) records of one instance.
            others: (M, ...) records of another instance, with other secrets.
        """
        return self.score(self.comparable(records), self.comparable(others))

    def renewed(self, generator: torch.Generator) -> Self:
        """Return this instance with another key, as after a theft; what was learned stays.

        Itself, where every record has a secret of its own. Asked where `renewable`.

        Args:
            generator: CPU generator of the key.

        Raises:
            NotImplementedError: The class does not say how.
        """
        raise NotImplementedError(f"{type(self).__name__} is renewable, but has no `renewed`")

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return the bytes that a record of this shape takes in storage. Default: float32."""
        return 4.0 * shape.numel()

    def fresh(self) -> Self:
        """Return the same algorithm and parameters without secrets, to be set up elsewhere."""
        return dataclasses.replace(self)


def draw_like(x: Tensor, generator: torch.Generator, kind: str = "normal") -> Tensor:
    """Draw noise of the shape of x on the CPU, so that every device gets the same, and move it.

    Args:
        x: Tensor whose shape and device the noise takes.
        generator: CPU generator.
        kind: "normal" (mean 0, deviation 1), "uniform" in [0, 1), "sign" (-1 or 1), or "laplace"
            (mean 0, scale 1).
    """
    match kind:
        case "normal":
            noise = torch.randn(x.shape, generator=generator)
        case "uniform":
            noise = torch.rand(x.shape, generator=generator)
        case "sign":
            noise = torch.randint(0, 2, x.shape, generator=generator).float() * 2 - 1
        case "laplace":
            # The inverse distribution function; the clamp keeps log away from 0.
            centered = torch.rand(x.shape, generator=generator).sub_(0.5).clamp_(-0.4999999)
            # In place: a batch of frequency tensors is 300 MB.
            magnitude = centered.abs().mul_(-2).log1p_()
            noise = magnitude.mul_(centered.sign_().neg_())
        case _:
            raise ValueError(f"unknown kind of noise {kind!r}")
    return noise.to(x.device)
