"""IronMask: a rotation that takes a template to a random codeword, whose hash is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defender
from defenses.fuzzy_commitment import HASH_BYTES, FuzzyCommitment


@DEFENSES.register("ironmask")
@dataclass
class IronMask(FuzzyCommitment):
    """A fuzzy commitment on the sphere (Kim et al., CVPR 2021).

    A codeword has a few entries of +-1 and zeros elsewhere. The record is a random rotation that
    takes the template to a random codeword, and the sha256 of the codeword. A probe is rotated
    alike and decoded: the largest entries, with their signs. It is accepted if the hash agrees.

    Leaks: template. Secret: the codeword, which nobody keeps. Score: 1 if accepted, else 0: there
    is one operating point. Known weakness: few entries make the codeword easy to guess, many reject
    the genuine probe; any face that is accepted gives the codeword, and with it the template
    exactly. Source: facts of Cryptology-Algorithm-Lab/HashBTP and DeepFaceProtection.

    Args:
        entries: Entries of a codeword that are not 0 (alpha); the paper takes 16 of 512.
    """

    leaks = frozenset({Leak.TEMPLATE})

    entries: Annotated[int, Field(ge=1)] = 16

    def fit(self, world: Defender) -> None:
        """Check the code against the length of a template; there is nothing to learn."""
        self.size = world.recognizer.embedding_size
        if self.entries > self.size:
            raise ValueError(f"ironmask needs entries <= {self.size}, the length of the template")

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, D * D + 32): a rotation, row by row, and the bytes of a hash."""
        count, size = x.shape
        positions = torch.rand(count, size, generator=generator).argsort(1)[:, : self.entries]
        signs = torch.randint(2, positions.shape, generator=generator).float() * 2 - 1
        codewords = torch.zeros(count, size).scatter(1, positions, signs)
        gaussian = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
        hidden = torch.linalg.qr(gaussian).Q.to(x.device)
        template = functional.normalize(x.double(), dim=1)
        target = functional.normalize(codewords.to(x.device).double(), dim=1)
        rotation = _turn((hidden @ template[..., None])[..., 0], target) @ hidden
        return self.commit(rotation.flatten(1).float(), _as_bytes(codewords))

    def decode(self, probes: Tensor, helper: Tensor) -> Sequence[bytes]:
        """Return the codewords nearest to probes rotated by the helper (D * D,)."""
        return _as_bytes(self.nearest(probes @ helper.reshape(self.size, self.size).T))

    def nearest(self, rotated: Tensor) -> Tensor:
        """Return the codewords (N, D) nearest to rotated probes."""
        largest = rotated.abs().topk(self.entries, dim=1).indices
        return torch.zeros_like(rotated).scatter(1, largest, rotated.gather(1, largest).sign())

    def linkage(self, records: Tensor, others: Tensor) -> Tensor:
        """Return the cosine of the rotations: no better linker is known without a codeword."""
        return functional.normalize(records, dim=1) @ functional.normalize(others, dim=1).T

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return float32 of the rotation and 32 bytes of the hash."""
        return 4.0 * (shape.numel() - HASH_BYTES) + HASH_BYTES


def _turn(start: Tensor, end: Tensor) -> Tensor:
    """Return rotations (N, D, D) of the plane of two unit vectors (N, D) that take one to other."""
    both = start + end
    spread = both[:, :, None] * both[:, None, :] / (1 + (start * end).sum(1))[:, None, None]
    unit = torch.eye(start.shape[1], dtype=start.dtype, device=start.device)
    return unit - spread + 2 * end[:, :, None] * start[:, None, :]


def _as_bytes(codewords: Tensor) -> list[bytes]:
    return [row.tobytes() for row in codewords.to(torch.int8).cpu().numpy()]
