import importlib
import subprocess
import sys

import pytest
import torch

from raybust import vision


def run(code):
    """Runs code in a fresh interpreter, as tests of imports need."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_networks_and_transforms_work():
    package = vision.torchvision()
    logits = package.models.resnet18(num_classes=5)(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    image = torch.arange(12.0).reshape(1, 3, 4)
    v2 = importlib.import_module("torchvision.transforms.v2")
    flipped = v2.functional.horizontal_flip(image)
    assert torch.equal(flipped, image.flip(2))
    assert vision.torchvision() is package


def test_import_of_vision_alone_loads_no_torchvision():
    done = run("import raybust.vision, sys; print('torchvision' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_timm_imports_after_it():
    done = run(
        "from raybust.vision import torchvision; torchvision(); import timm;"
        "print(len(timm.list_models('resnet18')) > 0)"
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="torchvision's own operators load")
def test_nothing_is_declared_where_the_operators_exist():
    done = run(
        "import torch\n"
        "from raybust import vision\n"
        "library = torch.library.Library('torchvision', 'DEF')\n"
        "for name in vision._MISSING: library.define(name + vision._SCHEMA)\n"
        "vision.torchvision()\n"
        "print(vision._declared)"
    )
    assert done.stdout.strip() == "[]", done.stderr


FAKE = (
    "import importlib, sys, types\n"
    "from raybust import vision\n"
    "package, calls, declared = types.ModuleType('torchvision'), [], []\n"
    "def fake(name):\n"
    "    calls.append('torchvision.half' in sys.modules)\n"
    "    if len(calls) == 1:\n"
    "        sys.modules['torchvision.half'] = package\n"
    "        raise RuntimeError({error!r})\n"
    "    return package\n"
    "vision.importlib.import_module = fake\n"
    "vision._declare_missing = lambda: declared.append(1)\n"
    "vision.torch.version.cuda = {cuda!r}\n"
    "try:\n"
    "    print(vision.torchvision() is package, calls, declared)\n"
    "except RuntimeError as error:\n"
    "    print('raised', calls, declared)\n"
)


@pytest.mark.parametrize(
    ("cuda", "error", "expected"),
    [
        (None, "operator torchvision::nms does not exist", "True [False, False] [1]"),
        ("13.0", "operator torchvision::nms does not exist", "raised [False] []"),
        (None, "something else", "raised [False] []"),
    ],
)
def test_second_import_only_for_missing_operators_on_cpu_torch(cuda, error, expected):
    done = run(FAKE.format(error=error, cuda=cuda))
    assert done.stdout.strip() == expected, done.stderr
