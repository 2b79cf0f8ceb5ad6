"""Import torchvision next to a CPU-only torch.

The torchvision wheel on PyPI is a CUDA build. Next to a CPU build of torch its compiled operators
do not load, and `import torchvision` stops with `RuntimeError: operator torchvision::nms does not
exist`: two of its modules describe operators to torch that are not there. The models need none of
them. So where, and only where, the plain import fails with this error, those two modules are
replaced by empty ones and the import is repeated. The operators stay missing, and calling one
(`torchvision.ops.nms`) still fails with torchvision's own message.

Call `import_torchvision` before importing a package that imports torchvision, such as lpips.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

_DESCRIBE_OPERATORS = ("torchvision._meta_registrations", "torchvision._autograd_registrations")


def import_torchvision() -> ModuleType:
    """Return the torchvision package, imported plainly wherever that works.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: The import fails for another reason than the missing operators.
    """
    try:
        return import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    for name in _DESCRIBE_OPERATORS:
        sys.modules[name] = ModuleType(name)
    return import_module("torchvision")
