"""A device that is not there: tensors on it hold their numbers in the CPU's memory.

Whatever mixes devices, hands its tensors to numpy or draws on it with a generator of the CPU fails
as on a GPU, so that code for GPUs can be tested without one. Kernels, rounding, memory and speed
are the CPU's, and autocast is off.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "pretended"

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""Indices may stay in the CPU's memory, as for CUDA."""


class Elsewhere(Tensor):
    """A tensor on the device; `here` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, 0),
        )
        made.here = here
        return made

    def __repr__(self) -> str:  # type: ignore[override] # torch's takes an option of its own
        return f"Elsewhere({self.here})"

    # The two that torch refuses to subclasses, though it has them for GPUs.

    def numpy(self, *, force: bool = False) -> Any:
        """Return the numbers to whom asks for a copy in the CPU's memory."""
        if not force:
            raise TypeError("the tensor is not in the CPU's memory")
        return self.detach().cpu().numpy()

    def tolist(self) -> Any:
        """Return the numbers."""
        return self.detach().cpu().tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch declares the one that is disabled
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees what makes tensors on the device out of none, or out of the CPU's: in this thread."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the numbers, after the checks that a GPU would make."""
    tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
    moved = any(isinstance(item, Elsewhere) for item in tensors)
    device = kwargs.get("device")
    lands = moved if device is None else torch.device(device).type == NAME
    if moved and func not in COPIES:
        _check_one_device(func, tensors)
    if lands and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU draws on the device")
    local = kwargs if device is None else kwargs | {"device": torch.device("cpu")}
    found = func(*_here(args), **_here(local))
    if not lands:
        return found
    result = tree_map_only(Tensor, Elsewhere, found)
    if not moved or func is aten._to_copy.default:
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)


def _check_one_device(func: Any, tensors: list[Tensor]) -> None:
    strangers = [item for item in tensors if not isinstance(item, Elsewhere) and item.ndim > 0]
    indexed_there = func in INDEXING and isinstance(tensors[0], Elsewhere)
    if strangers and not indexed_there:
        raise RuntimeError(f"{func}: some tensors are on the device, and some on the CPU")


def _here(value: Any) -> Any:
    return tree_map_only(Elsewhere, lambda item: item.here, value)


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a device: it has no half precision, and draws like the CPU."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []

    def get_rng_state(self, device: object) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object) -> None:
        """Do nothing: the state is the CPU's, which is set anyhow."""


@cache
def register() -> torch.library.Library:
    """Tell torch of the device, which must be before the first backward pass of the process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return library


@contextmanager
def pretended_device() -> Iterator[str]:
    """Let the device be there within the block, and return its name."""
    register()
    # torch.tensor(..., device=...) then moves what it made where the modes see it.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Factories(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "In pretended autocast", UserWarning)
            yield NAME
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
