"""MLP-Hash: bits of a random network under a key."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.keyed import Key, Keyed


@DEFENSES.register("mlp-hash")
@dataclass
class MLPHash(Keyed):
    """A random orthonormal multi-layer perceptron, cut at the mean (arXiv 2204.11054).

    Otroshi Shahreza, Krivokuca Hahn and Marcel, EUSIPCO 2023.

    Leaks: template. Secret: the weights. Score: share of equal bits. Known weakness: with the key
    the network is differentiable but for its last step, so a gradient search finds a pre-image;
    codes of one key can be regressed to embeddings. Source: the paper's abstract and facts of
    Idiap's public package; widths, depth and ReLU are unverified.

    Args:
        bits: Length of the code.
        width: Numbers in a hidden layer.
        layers: Hidden layers.
    """

    leaks = frozenset({Leak.TEMPLATE})

    bits: Annotated[int, Field(ge=1)] = 512
    width: Annotated[int, Field(ge=1)] = 1024
    layers: Annotated[int, Field(ge=1)] = 3

    def draw_key(self, size: int, generator: torch.Generator) -> Key:
        """Draw the matrices, with orthonormal columns or, where they widen, rows."""
        widths = [size, *[self.width] * self.layers, self.bits]
        drawn = [torch.rand(max(a, b), min(a, b), generator=generator) for a, b in pairwise(widths)]
        thin = [torch.linalg.qr(matrix).Q for matrix in drawn]
        return tuple(
            matrix if a >= b else matrix.T
            for matrix, (a, b) in zip(thin, pairwise(widths), strict=True)
        )

    def encode(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, bits) of 0 and 1."""
        return self.contest(x, key).argmax(2).float()

    def contest(self, x: Tensor, key: Key) -> Tensor:
        """Return (N, bits, 2): the mean of the outputs and the output."""
        *hidden, last = key
        for weights in hidden:
            x = (x @ weights).relu()
        made = x @ last
        return torch.stack([made.mean(1, keepdim=True).expand_as(made), made], 2)

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the share of equal bits in [0, 1]."""
        return ((2 * probes - 1) @ (2 * references - 1).T / self.bits + 1) / 2

    def code_bytes(self, size: int) -> float:
        """Return the bytes of a packed code."""
        return size / 8
