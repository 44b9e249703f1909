"""The model card of a trained network: what it was trained on, how, and what is proven of it.

Results of another network, other images or other labels than those of now are left out. The card is
Markdown with the sections that model hubs expect.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

from raybust.disk.files import is_aside
from raybust.identity import fixed_images, outputs_of, weights_digest
from raybust.models import Normalize
from raybust.reporting.attacks import compare_attacks
from raybust.reporting.certificates import read_logs, table_of
from raybust.reporting.comparison import groups_of
from raybust.search.leaderboard import UNITS
from raybust.stages import attacked, certified
from raybust.stages.current import changes_of
from raybust.track.environment import environment
from raybust.trained import Trained

CARD = "MODEL_CARD.md"

_USE = {
    "manifest.json": """```python
import raybust

answers = raybust.predict("FOLDER", images)  # of model.safetensors: class and certified radius
```""",
    "model.pt2": """```python
import torch

network = torch.export.load("model.pt2").module()
logits = network(images)
```""",
    "model.onnx": """```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"images": images})
```""",
}


def card_of(trained: Trained, folder: Path, license_name: str | None) -> str:
    """Returns the card in Markdown.

    Args:
        trained: the network with its data.
        folder: of the exported networks.
        license_name: of the weights; None if it was not stated.
    """
    config, dataset = trained.config, trained.dataset
    channels, height, width = dataset.shape
    parameters = sum(parameter.numel() for parameter in trained.network.parameters())
    lines = [
        f"# {trained.name}",
        f"License of the weights: {license_name or 'not stated'}.",
        "## Network",
        f"`{config.model.name}`, {parameters:,} parameters. Input: float images (N, {channels},"
        f" {height}, {width}) in [0, 1]; the first layer normalizes them. Output: logits of"
        f" {len(dataset.classes)} classes: {', '.join(dataset.classes)}.",
        *_normalization(trained),
        *[text for file, text in _USE.items() if (folder / file).exists()],
        "## Training",
        *_how(trained),
        "## What is proven",
        *_proven(trained),
        "## What was measured under attack",
        *_attacked(trained),
        "## Origin",
        "- " + ", ".join(f"{name} {version}" for name, version in environment().items()),
        f"- SHA-256 of the weights, by name, type and shape: `{weights_digest(trained.network)}`",
        f"- SHA-256 of its outputs on fixed images: `{function_digest(trained)}`",
        f"- digest of the data: `{dataset.digest}`",
    ]
    text = "\n\n".join(lines).replace("\n\n- ", "\n- ")
    for head in ("Training", "Origin"):
        text = text.replace(f"## {head}\n- ", f"## {head}\n\n- ")
    return text + "\n"


def function_digest(trained: Trained) -> str:
    """Returns the digest of a network's outputs on fixed images, to four decimals. Equal weights in
    another `forward`, or behind another normalization, have another one."""
    outputs = outputs_of(trained.network, fixed_images(trained.dataset.shape))
    return hashlib.sha256(" ".join(f"{one:.4f}" for one in outputs).encode()).hexdigest()


def _normalization(trained: Trained) -> list[str]:
    """Returns the constants of the network's first layer."""
    layers = (part for part in trained.network.modules() if isinstance(part, Normalize))
    return [f"Normalization: {layer.constants}." for layer in layers][:1]


def _how(trained: Trained) -> list[str]:
    """Returns how the network was trained, as far as that is known."""
    config, described = trained.config, trained.dataset.described
    if not trained.training_known:
        return [
            "- trained elsewhere: data, method and settings are not known",
            *[f"- measured here on: {line}" for line in described],
        ]
    fields = dataclasses.asdict(config.method)
    told = [f"{key}: {value}" for key, value in fields.items() if not isinstance(value, dict)]
    budget, amount = config.train.budget
    return [
        *[f"- {line}" for line in described],
        *([f"- started from the weights of `{start}`"] if (start := config.train.init) else []),
        f"- method `{config.method.key}`" + (f": {', '.join(told)}" if told else ""),
        f"- {config.train.optimizer}, learning rate {config.train.rate:g}, batch size"
        f" {config.train.batch_size}, {amount:g} {UNITS[budget]}, seed {config.seed}",
        *[f"- {note}" for note in trained.notes if note.startswith("warning: ")],
    ]


def _current(trained: Trained, kind: str, ending: str) -> list[Path]:
    """Returns the results of this network on its present data."""
    found = sorted((trained.folder / kind).glob(f"*{ending}"))
    return [
        path
        for path in found
        if not is_aside(path) and ".robustbench-" not in path.name and not changes_of(trained, path)
    ]


_KINDS = {
    "bounds": "Certified accuracy in % by radius, by sound bounds: the network itself gives the"
    " right class, and no change of the image within the radius changes it.",
    "smoothing": "Certified accuracy in % by radius, by randomized smoothing: the smoothed"
    " classifier gives the right class, and no change of the image within the radius changes it.",
}


def _proven(trained: Trained) -> list[str]:
    logs = _current(trained, certified.FOLDER, ".tsv")
    if not logs:
        return [f"Nothing yet: `raybust certify {trained.name}`."]
    lines: list[str] = []
    groups = groups_of(read_logs(logs, [path.stem for path in logs]))
    for (norm, kind), own in sorted(groups.items(), key=lambda one: (one[0][1], one[0])):
        lines += [_KINDS[kind]] * (_KINDS[kind] not in lines)
        text = table_of(own, trained.config.certify.columns(norm))
        lines += [f"### Radii in {norm}", text.rstrip()]
    return lines


def _attacked(trained: Trained) -> list[str]:
    found = _current(trained, attacked.FOLDER, ".json")
    if not found:
        return [f"Nothing yet: `raybust evaluate {trained.name}`."]
    with TemporaryDirectory() as place:
        made = compare_attacks([(trained.name, path) for path in found], Path(place))
    return [
        "Accuracy in % under attacks: what was found, not what is proven.",
        made.markdown.rstrip(),
    ]
