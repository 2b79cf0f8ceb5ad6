"""What every face recogniser offers: a head, a tail, and a similarity of embeddings."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bench import assets
from bench.errors import UserError
from bench.leaks import Leak
from bench.precision import full_float32

CROP = (3, 112, 112)
"""Shape of an input image: RGB in [0, 1], aligned as in `bench.datasets.align`."""

BATCH = 32

REMEMBERED = 1024
"""Batches whose embeddings a recognizer remembers; 32 of 128 numbers take 16 kB."""


class Recognizer(nn.Module, ABC):
    """A face network cut into `head: image -> features` and `tail: features -> embedding`.

    All weights are frozen; both halves are differentiable with respect to their input. Inputs and
    outputs are float32 whatever the precision inside.

    Attributes:
        name: Name in the registry.
        asset: Name of its weights among the assets.
        similarity_definition: Id of the metric definition of `similarity`.
        weights_sha256: Hash of the file the weights came from.
        feature_shape: Shape (C, H, W) of the map at the cut.
        embedding_size: Length of an embedding.
        precision: Type of the arithmetic inside ("float32" or "bfloat16"); part of a result's key.
    """

    name: ClassVar[str]
    asset: ClassVar[str]
    similarity_definition: ClassVar[str] = "cosine"
    weights_sha256: str
    feature_shape: tuple[int, int, int]
    embedding_size: int
    precision: str

    @abstractmethod
    def head(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) in [0, 1] to features (N, *feature_shape)."""

    @abstractmethod
    def tail(self, features: Tensor) -> Tensor:
        """Map features (N, *feature_shape) to embeddings (N, embedding_size)."""

    def embed(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) in [0, 1] to embeddings (N, embedding_size)."""
        return self.tail(self.head(images))

    def first_reading(self, features: Tensor) -> Tensor | None:
        """Map features to what the tail's first convolution over neighbours makes of them.

        None where the tail has no such convolution, as a transformer's.
        """
        return first_mixed(self.tail, features)

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The first convolution, of stride 1: what a transformed input replaces.

        Raises:
            UserError: The network does not say how to go on from there.
        """
        raise UserError(
            f"The recognizer {self.name} cannot be adapted to another input: take one that can, "
            "such as sface."
        )

    def first_input(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 112, 112) in [0, 1] to what the first convolution takes."""
        raise NotImplementedError(f"{self.name} cannot be adapted")

    def after_first(self, x: Tensor) -> Tensor:
        """Map what it makes (N, C, 112, 112) to embeddings (N, embedding_size)."""
        raise NotImplementedError(f"{self.name} cannot be adapted")

    @property
    def credit(self) -> str:
        """Whom to cite for the weights, and their licence."""
        return assets.manifest()[self.asset].full_credit

    @property
    def settings(self) -> dict[str, Any]:
        """What else changes its outputs, as plain values; part of a result's key."""
        return {}

    def leaking(self, leak: Leak, images: Tensor) -> Tensor:
        """Return the undefended object that leaks, batch by batch and without gradients.

        Args:
            leak: Which object: the images themselves, features, or embeddings.
            images: (N, 3, 112, 112) in [0, 1].
        """
        match leak:
            case Leak.IMAGE:
                return images
            case Leak.FEATURES:
                return _batched(self.head, images)
            case Leak.TEMPLATE:
                return _batched(self._embed_once, images)

    def _embed_once(self, images: Tensor) -> Tensor:
        """Embed a batch, or remember its embeddings: the same photos meet every defense.

        Hashing a batch takes a hundredth of the time of embedding it on a CPU; elsewhere it would
        have to be copied first, and is embedded again.
        """
        if images.device.type != "cpu":
            return self.embed(images)
        key = hashlib.sha256(images.detach().contiguous().numpy().data).digest()
        known = _SEEN.setdefault(self, {})
        if key not in known:
            if len(known) == REMEMBERED:
                del known[next(iter(known))]
            known[key] = self.embed(images)
        return known[key].clone()

    def _compute(self, layers: nn.Module, x: Tensor) -> Tensor:
        """Run layers over a map in the recognizer's precision, of which float32 is never TF32."""
        half = self.precision == "bfloat16"
        with full_float32(), torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
            result: Tensor = layers(x.contiguous(memory_format=torch.channels_last))
        return result.float()

    def similarity(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the (P, R) similarities of embeddings; higher is more alike. Default: cosine."""
        return functional.normalize(probes, dim=1) @ functional.normalize(references, dim=1).T


_SEEN: WeakKeyDictionary[Recognizer, dict[bytes, Tensor]] = WeakKeyDictionary()


@torch.no_grad()
def _batched(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(batch) for batch in images.split(BATCH)])


class _Mixed(Exception):  # noqa: N818  nothing is wrong
    """A convolution over neighbours has been reached."""

    def __init__(self, output: Tensor) -> None:
        super().__init__("reached")
        self.output = output


class _UpToMixing(TorchFunctionMode):
    """Stops a network at the output of its first convolution over neighbours.

    Networks come as modules, as scripts of a user's package, and as graphs read from a file; they
    have only torch's functions in common.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        result = func(*args, **named)
        if func is torch.conv2d:
            weight = args[1] if len(args) > 1 else named["weight"]
            if max(weight.shape[2:]) > 1:
                raise _Mixed(result)
        return result


def first_mixed(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    """Return what a network's first convolution over neighbours makes of x; None without one."""
    try:
        with _UpToMixing():
            network(x)
    except _Mixed as mixed:
        return mixed.output.float()
    return None


def frozen_prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Return the PReLU of x (N, C, H, W) with slopes (C,) that are constants.

    Its backward pass takes a quarter of the time of torch's, which also sums the gradient of the
    slopes element by element.
    """
    result: Tensor = _FrozenPReLU.apply(x, slope.to(x.dtype))
    return result


class _FrozenPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return functional.prelu(x, slope)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, slope = ctx.saved_tensors
        slope = slope.reshape(-1, 1, 1)
        passed = torch.ops.aten.threshold_backward(gradient, x, 0)
        return torch.addcmul(gradient * slope, passed, 1 - slope), None


def best_cpu_precision() -> str:
    """Return "bfloat16" where the processor multiplies bfloat16 natively, else "float32"."""
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def chosen_precision(precision: str, name: str) -> str:
    """Return the type of a recogniser's arithmetic, of which "auto" is the best of the processor.

    Raises:
        UserError: It is not "auto", "float32" or "bfloat16".
    """
    if precision not in {"auto", "float32", "bfloat16"}:
        raise UserError(
            f"The precision {precision!r} of {name} is unknown: use auto, float32 or bfloat16."
        )
    return best_cpu_precision() if precision == "auto" else precision
