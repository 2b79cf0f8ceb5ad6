"""Learned perceptual distance: ST-LPIPS, which needs no download, and LPIPS.

Both compare unit-length features of a trained trunk, layer by layer, under trained non-negative
weights. ST-LPIPS brings its own trunk. LPIPS needs torchvision's ImageNet trunk as a file; without
that very file it refuses, because a random trunk would give numbers that look right. Distances of
different nets are not comparable: each has its own id in `DEFINITIONS`.

Learned distances see no identity (another person in the same pose scores close) and flip under
imperceptible adversarial noise: read them beside an identity metric.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from bench import assets
from bench.errors import MetricError, MissingAssetError
from bench.metrics.definitions import unknown
from bench.metrics.image import as_tensor
from bench.precision import full_float32
from bench.torchvision_import import import_torchvision

if TYPE_CHECKING:
    from collections.abc import Sequence

Images = TypeVar("Images", NDArray[Any], Tensor)

DEFINITIONS = {
    "st-alex": "lpips:st-alex-v0.0",
    "st-vgg": "lpips:st-vgg-v0.0",
    "alex": "lpips:alex-v0.1",
    "vgg": "lpips:vgg-v0.1",
    "squeeze": "lpips:squeeze-v0.1",
}

# torchvision's file names end in the first digits of the file's sha256.
_TRUNKS = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
_SMALLEST = 32  # pixels; below, the last feature maps vanish
_BATCH = 16
_CACHE_BYTES = 2 << 30


def lpips(a: Images, b: Images, *, net: str = "st-alex") -> Images:
    """Return the learned perceptual distance of each pair of images; higher is more different.

    Args:
        a: RGB images (N, 3, H, W) or one image (3, H, W), floats in [0, 1], at least 32x32.
        b: Images of the same shape and kind as `a`.
        net: "st-alex" or "st-vgg" for ST-LPIPS, "alex", "vgg" or "squeeze" for LPIPS 0.1.

    Returns:
        Distance >= 0 per pair, float32, shape (N,) or (); an array for arrays, a differentiable
        tensor on the images' device for tensors.

    Raises:
        MetricError: Unknown net; shapes differ or are wrong; values are outside [0, 1].
        MissingAssetError: The weights are absent or altered.

    References: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual
    metric", CVPR 2018; Ghildyal and Liu, "Shift-tolerant perceptual similarity metric", ECCV 2022.
    """
    x, y = _images(a), _images(b)
    _same_shape(x, y)
    network = _network(net, x.device)
    pairs = zip(torch.split(x, _BATCH), torch.split(y, _BATCH), strict=True)
    values = [network.distance(network.features(u), network.features(v)) for u, v in pairs]
    return _like(a, torch.cat(values))


class Reference:
    """Originals whose features are computed once, for many reconstructions of them.

    Args:
        originals: RGB images (N, 3, H, W), floats in [0, 1], at least 32x32.
        net: As in `lpips`.
        cache_bytes: Memory for the features, on the device of the originals. Those of the images
            that do not fit are computed anew on each call; the distances are the same.

    Raises:
        MetricError: Unknown net; wrong shape or range.
        MissingAssetError: The weights are absent or altered.
    """

    def __init__(
        self,
        originals: NDArray[Any] | Tensor,
        *,
        net: str = "st-alex",
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self._originals = _images(originals).detach()
        self._network = _network(net, self._originals.device)
        self._features: list[Sequence[Tensor]] = []
        for batch in torch.split(self._originals, _BATCH):
            features = self._batch_features(batch)
            cache_bytes -= sum(layer.nbytes for layer in features)
            if cache_bytes < 0:
                break
            self._features.append(features)

    def lpips(self, reconstructions: Images) -> Images:
        """Return the distance of each reconstruction to its original, as `lpips` would.

        Args:
            reconstructions: Images of the originals' shape, floats in [0, 1], in their order.

        Raises:
            MetricError: The shape differs from the originals'; wrong range.
        """
        images = _images(reconstructions)
        _same_shape(self._originals, images)
        values = []
        for index, batch in enumerate(torch.split(images, _BATCH)):
            if index < len(self._features):
                reference = self._features[index]
            else:
                start = index * _BATCH
                reference = self._batch_features(self._originals[start : start + _BATCH])
            values.append(self._network.distance(reference, self._network.features(batch)))
        return _like(reconstructions, torch.cat(values))

    @torch.no_grad()
    def _batch_features(self, originals: Tensor) -> Sequence[Tensor]:
        return self._network.features(originals)


@dataclass(frozen=True)
class _Network:
    """A trunk with the layers to compare and the weight of each channel of each layer."""

    trunk: nn.Module  # images -> feature maps, one (N, C, h, w) per compared layer
    weights: tuple[Tensor, ...]  # (C, 1, 1) per compared layer
    shift: Tensor  # (3, 1, 1), as `scale`: the normalisation for images in [-1, 1]
    scale: Tensor

    @full_float32()
    def features(self, images: Tensor) -> list[Tensor]:
        """Return the unit-length feature maps of images in [0, 1].

        The norm is bounded below where it is far below the definition's epsilon of 1e-10: this
        changes no value and keeps the gradient finite at a pixel whose features are all zero.
        """
        maps = self.trunk((2 * images - 1 - self.shift) / self.scale)
        norms = (layer.square().sum(dim=1, keepdim=True).clamp_min(1e-30).sqrt() for layer in maps)
        return [layer / (norm + 1e-10) for layer, norm in zip(maps, norms, strict=True)]

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Return the weighted squared distance of feature maps, averaged over each map, summed."""
        layers = [
            ((u - v).square() * weight).sum(dim=1).mean(dim=(1, 2))
            for u, v, weight in zip(a, b, self.weights, strict=True)
        ]
        return torch.stack(layers).sum(dim=0)


class _BlurPool(nn.Module):
    """Halves a map after a [1 2 1] blur, over a border reflected by two pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.empty(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, self.get_buffer("filt"), stride=2, groups=x.shape[1])


class _Taps(nn.Module):
    """A chain of layers that returns the outputs of some of them."""

    def __init__(self, layers: Sequence[nn.Module], taps: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.taps = taps

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                outputs.append(x)
        return outputs


def _st_alex() -> _Taps:
    """Return AlexNet's convolutions with stride 1 and anti-aliased reductions."""
    layers = [
        *(nn.Conv2d(3, 64, 11, padding=2), _BlurPool(64), nn.ReLU()),
        *(nn.MaxPool2d(3, 1), _BlurPool(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
        *(nn.MaxPool2d(3, 1), _BlurPool(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]
    return _Taps(layers, taps=(2, 6, 10, 12, 14))


def _st_vgg() -> _Taps:
    """Return VGG-16's convolutions with anti-aliased reductions."""
    layers: list[nn.Module] = []
    taps = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers += [nn.MaxPool2d(2, 1), _BlurPool(channels)]
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        taps.append(len(layers) - 1)
    return _Taps(layers, taps)


_ST_TRUNKS = {"st-alex": _st_alex, "st-vgg": _st_vgg}


@cache
def _network(net: str, device: torch.device) -> _Network:
    if net not in DEFINITIONS:
        raise unknown("perceptual net", net, DEFINITIONS)
    # Building layers draws random numbers, which the weights then replace: leave no trace of it.
    # The network is kept, so it must also serve calls with gradients after one without.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(mode=False):
        network = _st_lpips(net) if net in _ST_TRUNKS else _lpips(net)
        return _Network(
            trunk=network.trunk.requires_grad_(requires_grad=False).eval().to(device),
            weights=tuple(weight.to(device) for weight in network.weights),
            shift=network.shift.to(device),
            scale=network.scale.to(device),
        )


def _st_lpips(net: str) -> _Network:
    path = assets.locate(f"stlpips-{net.removeprefix('st-')}")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    trunk = _ST_TRUNKS[net]()
    # The file's key "net.slice2.5.weight" is the weight of layer 5 of the whole chain.
    layers = {
        "layers." + key.split(".", maxsplit=2)[2]: value
        for key, value in state.items()
        if key.startswith("net.")
    }
    trunk.load_state_dict(layers)
    return _Network(
        trunk=trunk,
        weights=tuple(state[f"lin{i}.model.1.weight"][0] for i in range(len(trunk.taps))),
        shift=state["scaling_layer.shift"][0],
        scale=state["scaling_layer.scale"][0],
    )


def _lpips(net: str) -> _Network:
    path = _trunk_path(net)
    import_torchvision()
    import lpips as package  # slow, and possible only now

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        model = package.LPIPS(net=net, pnet_rand=True, verbose=False)
    trunk: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    # lpips calls "slice2.3.weight" what torchvision calls "features.3.weight".
    model.net.load_state_dict(
        {key: trunk["features." + key.split(".", maxsplit=1)[1]] for key in model.net.state_dict()}
    )
    return _Network(
        trunk=model.net,
        weights=tuple(lin.model[-1].weight.detach()[0] for lin in model.lins),
        shift=model.scaling_layer.shift[0],
        scale=model.scaling_layer.scale[0],
    )


def has_trunk(net: str) -> bool:
    """Say whether the ImageNet trunk of an LPIPS net ("alex", "vgg", "squeeze") is there."""
    return _trunk_place(net).is_file()


def _trunk_variable(net: str) -> str:
    return f"VEILBENCH_ASSET_LPIPS_TRUNK_{net.upper()}"


def _trunk_place(net: str) -> Path:
    """Return where the trunk is looked for: the environment's path, else torch's folder."""
    explicit = os.environ.get(_trunk_variable(net))
    return Path(explicit) if explicit else Path(torch.hub.get_dir()) / "checkpoints" / _TRUNKS[net]


def _trunk_path(net: str) -> Path:
    """Return the checked file of torchvision's ImageNet trunk."""
    file, variable, path = _TRUNKS[net], _trunk_variable(net), _trunk_place(net)
    mend = (
        f"save https://download.pytorch.org/models/{file} there, name another copy in {variable}, "
        f"or use net='st-{'vgg' if net == 'vgg' else 'alex'}', which needs no download."
    )
    if not path.is_file():
        raise MissingAssetError(f"The ImageNet trunk of LPIPS {net} is missing at {path}: {mend}")
    expected = Path(file).stem.rsplit("-", maxsplit=1)[1]
    found = assets.file_sha256(path)
    if not found.startswith(expected):
        raise MissingAssetError(
            f"The ImageNet trunk of LPIPS {net} at {path} was altered (sha256 "
            f"{found[: len(expected)]}…, expected {expected}…): {mend}"
        )
    return path


def _images(images: NDArray[Any] | Tensor) -> Tensor:
    """Return the images as a float32 tensor (N, 3, H, W), or explain why that cannot be."""
    x = as_tensor(images)
    shape = tuple(x.shape)
    if x.ndim not in (3, 4) or shape[-3] != 3 or 0 in shape:
        raise MetricError(f"Images must have the shape (N, 3, H, W) or (3, H, W), not {shape}.")
    if min(shape[-2:]) < _SMALLEST:
        raise MetricError(
            f"Images of {shape[-2]}x{shape[-1]} are too small for a perceptual distance: give at "
            f"least {_SMALLEST}x{_SMALLEST}."
        )
    if not x.is_floating_point():
        raise MetricError(f"Images must be floats in [0, 1], not {x.dtype}: divide them by 255.")
    low, high = (float(value) for value in x.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise MetricError(f"Images must be in [0, 1], not from {low:g} to {high:g}: rescale them.")
    return (x if x.ndim == 4 else x[None]).float()


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.device != b.device:
        raise MetricError(
            f"The images differ in shape or device, {tuple(a.shape)} on {a.device} and "
            f"{tuple(b.shape)} on {b.device}: pair them first."
        )


def _like(images: Images, values: Tensor) -> Images:
    values = values if images.ndim == 4 else values[0]
    return values if isinstance(images, Tensor) else values.numpy()
