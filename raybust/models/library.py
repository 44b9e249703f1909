"""Pretrained weights of torchvision and timm that are already on this machine's disk.

Nothing is downloaded: the libraries' own caches are searched, and where the file is not there, the
message has the line that fetches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raybust import vision
from raybust.errors import RequestError
from raybust.models.external import LIBRARIES, check_name

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Pretrained:
    """Weights of a library.

    Attributes:
        path: of the file.
        model: name of the network, like "timm:resnet18".
        mean: of the normalization that they were trained with, (C,).
        std: the same.
    """

    path: Path
    model: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_pretrained(source: str) -> bool:
    """Returns whether a text names a library's weights: `torchvision:NAME` or `timm:NAME[.TAG]`."""
    return source.partition(":")[0] in LIBRARIES and not Path(source).exists()


def pretrained(source: str) -> Pretrained:
    """Returns the weights that a text names.

    Args:
        source: `torchvision:NAME`, whose default weights, or else any, are meant, or
            `timm:NAME[.TAG]`.

    Raises:
        RequestError: there is no such network, it has no weights, or they are not on the disk.
    """
    library, _, name = source.partition(":")
    check_name(library, name)
    return _of_torchvision(name) if library == "torchvision" else _of_timm(name)


def _of_torchvision(name: str) -> Pretrained:
    models = vision.torchvision().models
    every = list(models.get_model_weights(name))
    if not every:
        raise RequestError(f"torchvision:{name} has no pretrained weights")
    default = models.get_model_weights(name).DEFAULT
    for one in sorted(every, key=lambda one: one is not default):
        path = _hub() / Path(one.url).name
        if path.is_file():
            preset: Any = one.transforms()
            return Pretrained(path, f"torchvision:{name}", tuple(preset.mean), tuple(preset.std))
    raise _absent(
        f"torchvision:{name}", _hub() / Path(default.url).name,
        f'python -c "import torch; torch.hub.load_state_dict_from_url(\'{default.url}\')"',
    )  # fmt: skip


def _of_timm(name: str) -> Pretrained:
    vision.torchvision()
    import timm

    config: Any = timm.models.get_pretrained_cfg(name)
    if config is None or not (config.url or config.hf_hub_id or config.file):
        raise RequestError(f"timm:{name} has no pretrained weights")
    bare = f"timm:{name.partition('.')[0]}"
    found = [Path(config.file)] if config.file else []
    found += [_hub() / Path(config.url).name] if config.url else []
    found += _of_hugging_face(config)
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise _absent(
            f"timm:{name}", _hub() / Path(config.url or config.hf_hub_id).name,
            f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\"",
        )  # fmt: skip
    return Pretrained(path, bare, tuple(config.mean), tuple(config.std))


def _of_hugging_face(config: Any) -> list[Path]:
    """Returns the files of a network in Hugging Face's cache."""
    if not config.hf_hub_id:
        return []
    import huggingface_hub

    names = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    found = [huggingface_hub.try_to_load_from_cache(config.hf_hub_id, name) for name in names]
    return [Path(path) for path in found if isinstance(path, str)]


def _hub() -> Path:
    """Returns the folder in which torch keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _absent(source: str, path: Path, command: str) -> RequestError:
    return RequestError(
        f"{source}: its weights are not on this machine's disk, such as in {path}; raybust"
        f" downloads none: {command}"
    )
