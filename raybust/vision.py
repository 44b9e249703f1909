"""The only importer of torchvision: `torchvision()` imports the package on first use.

With a CPU build of torch, a CUDA build of torchvision cannot load its compiled operators, and its
import fails because two operator registrations (`nms`, `qnms`) find no schema. Declaring these two
schemas makes everything work but `torchvision.io` and the operators, which raise torchvision's own
error. A CPU build of torchvision needs none of this, so the plain import is tried first. timm
imports torchvision too: call this before it. Used by the stages data and models.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType

import torch

_MISSING = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []
"""Keeps the declarations alive."""


@functools.cache
def torchvision() -> ModuleType:
    """Returns the package torchvision with `datasets`, `models` and `transforms` imported.

    Raises:
        RuntimeError: torchvision does not match a CUDA build of torch; torchvision's own error.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if torch.version.cuda is not None or "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _declare_missing()
    return importlib.import_module("torchvision")


def transforms() -> ModuleType:
    """Returns torchvision.transforms.v2: TrivialAugmentWide, AugMix, MixUp and the like."""
    torchvision()
    return importlib.import_module("torchvision.transforms.v2")


def _declare_missing() -> None:
    for name in _MISSING:
        if not hasattr(torch.ops.torchvision, name):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(name + _SCHEMA)
            _declared.append(library)
