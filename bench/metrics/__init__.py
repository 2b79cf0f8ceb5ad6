"""The measures behind every number in a report, importable on their own.

Image similarity (`ssim`, `psnr`, `mse`, `lpips`), verification and identification, unlinkability,
and the intervals that belong to them (`bench.metrics.intervals`). `bench.metrics.definitions` says
what each metric id in a result row means. Arrays and tensors are accepted; nothing here needs the
rest of the package except its errors, weight files and float32 setting.

Names load on first use, so that listing the metrics does not import torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.metrics.all_pairs import all_pairs
    from bench.metrics.definitions import Definition, definition, definitions
    from bench.metrics.identification import (
        acceptance,
        acceptance_from_scores,
        identification,
        identification_from_scores,
    )
    from bench.metrics.image import mse, psnr, ssim
    from bench.metrics.intervals import (
        Estimate,
        NonInferiority,
        clopper_pearson,
        clustered_mean,
        clustered_rate,
        dyadic_variance,
        equal_error_difference,
        equal_error_rate,
        false_match_rate,
        fmr_statistic,
        global_linkability,
        mcnemar,
        non_inferiority,
        pair_difference,
        pair_rate,
        paired_difference,
        tar_statistic,
        vertex_bootstrap,
        wilson,
    )
    from bench.metrics.perceptual import Reference, lpips
    from bench.metrics.unlinkability import (
        LinkGains,
        Unlinkability,
        link_gains,
        unlinkability,
    )
    from bench.metrics.verification import (
        PairErrors,
        auc,
        det,
        eer,
        equal_errors,
        roc,
        tar_at_far,
        threshold_at_fmr,
        verification_accuracy,
    )

__all__ = [
    "Definition",
    "Estimate",
    "LinkGains",
    "NonInferiority",
    "PairErrors",
    "Reference",
    "Unlinkability",
    "acceptance",
    "acceptance_from_scores",
    "all_pairs",
    "auc",
    "clopper_pearson",
    "clustered_mean",
    "clustered_rate",
    "definition",
    "definitions",
    "det",
    "dyadic_variance",
    "eer",
    "equal_error_difference",
    "equal_error_rate",
    "equal_errors",
    "false_match_rate",
    "fmr_statistic",
    "global_linkability",
    "identification",
    "identification_from_scores",
    "link_gains",
    "lpips",
    "mcnemar",
    "mse",
    "non_inferiority",
    "pair_difference",
    "pair_rate",
    "paired_difference",
    "psnr",
    "roc",
    "ssim",
    "tar_at_far",
    "tar_statistic",
    "threshold_at_fmr",
    "unlinkability",
    "verification_accuracy",
    "vertex_bootstrap",
    "wilson",
]

_NAMES = {
    "all_pairs": ("all_pairs",),
    "definitions": ("Definition", "definition", "definitions"),
    "identification": (
        "acceptance",
        "acceptance_from_scores",
        "identification",
        "identification_from_scores",
    ),
    "image": ("mse", "psnr", "ssim"),
    "intervals": (
        "Estimate",
        "NonInferiority",
        "clopper_pearson",
        "clustered_mean",
        "clustered_rate",
        "dyadic_variance",
        "equal_error_difference",
        "equal_error_rate",
        "false_match_rate",
        "fmr_statistic",
        "global_linkability",
        "mcnemar",
        "non_inferiority",
        "pair_difference",
        "pair_rate",
        "paired_difference",
        "tar_statistic",
        "vertex_bootstrap",
        "wilson",
    ),
    "perceptual": ("Reference", "lpips"),
    "unlinkability": ("LinkGains", "Unlinkability", "link_gains", "unlinkability"),
    "verification": (
        "PairErrors",
        "auc",
        "det",
        "eer",
        "equal_errors",
        "roc",
        "tar_at_far",
        "threshold_at_fmr",
        "verification_accuracy",
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


class _Package(ModuleType):
    """Keeps a function reachable whose module has the same name.

    Importing `bench.metrics.unlinkability` would otherwise put the module where
    `from bench.metrics import unlinkability` promises the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _MODULE_OF):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
