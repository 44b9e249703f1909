"""Architecture tests: allowed imports, size limits, lazy loading."""

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import raybust
from raybust.cli import cli

PACKAGE = Path(raybust.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import: parts of raybust, then packages beside the standard library. `errors`
# is open to all. A package in brackets may be imported inside functions only.
TABLE = {
    "__init__": "(api)",
    "api": "config data reporting request search stages trained | torch",
    "__main__": "cli",
    "errors": "",
    "plugins": "",
    "beside": "",
    "devices": "| torch",
    "config": "| omegaconf yaml",
    "identity": "devices | torch",
    "numerics": "| torch numpy scipy",
    "vision": "| torch torchvision",
    "disk": "config | torch safetensors yaml",
    "data": "devices config disk plugins vision | torch numpy PIL (pyarrow fsspec)",
    "models": "config numerics plugins vision | torch safetensors (huggingface_hub timm)",
    # The image augmentations of lp_noise are torchvision's, drawn late.
    "methods": "config numerics plugins (vision) | torch",
    "certification": "devices config data disk identity numerics | torch numpy scipy",
    "evaluate": (
        "devices config data disk identity models certification numerics"
        " | torch numpy (timm pyautoattack)"
    ),
    "corruptions": "config data disk identity numerics | torch numpy (imagecorruptions)",
    "training": (
        "devices config data disk identity methods models certification evaluate numerics | torch"
    ),
    "trained": "config data disk evaluate identity methods models training | torch",
    "ensembles": "disk models trained",
    "track": "beside config disk | yaml (joblib mlflow numpy)",
    "serve": (
        "config data devices certification identity"
        " | fastapi numpy prometheus_client ray scipy starlette swagger_ui_bundle torch"
    ),
    "pyfunc": "api config trained | mlflow numpy pandas",
    "request": "(config disk ensembles methods search track trained)",
    "search": "config disk methods track | numpy optuna scipy sqlalchemy yaml (optuna_dashboard)",
    "significance": "numerics | numpy scipy",
    "reporting": (
        "certification config corruptions disk evaluate identity numerics search significance"
        " | numpy scipy matplotlib (plotly)"
    ),
    "studies": "config data numerics | torch matplotlib",
    "cluster": (
        "devices config data disk identity methods models training track search"
        " | psutil torch ray yaml (aiohttp)"
    ),
    "stages": (
        "beside devices config data disk identity methods models numerics training certification"
        " evaluate corruptions trained track search reporting cluster request significance (serve)"
        " | numpy torch joblib optuna (onnx pandas tqdm)"
    ),
    "cli": (
        "config data disk methods models request (identity training evaluate studies track"
        " reporting trained cluster search stages)"
        " | click (yaml)"
    ),
    # For the tests of plug-in packages; nothing of raybust imports it.
    "testing": "config data disk methods models numerics search training | torch numpy pytest yaml",
}
# A package at one place only, whatever the table says elsewhere.
ALONE = {
    "click": "cli",
    "mlflow": "track pyfunc",
    "omegaconf": "config",
    "optuna": "search stages",
    "pytest": "testing",
    "ray": "cluster serve",
    "torchvision": "vision",
}
STAGE = {"out", "address", "detach", "workers", "resume", "dry_run", "verbose", "as_json"}
OPTIONS = {
    "train": STAGE | {"name", "find_lr"},
    "tune": STAGE | {"name"},
    "certify": STAGE | {"result", "only", "cohen"},
    "evaluate": STAGE | {"result"},
    "predict": (STAGE | {"result", "radius", "plain", "form", "replay"}) - {"dry_run", "as_json"},
    "serve": {
        "out",
        "address",
        "verbose",
        "host",
        "port",
        "replicas",
        "queue",
        "token_file",
        "no_token",
    },
    "export": {"out", "as_json", "folder", "form", "license_name", "verifier"},
    "compare": {"name", "out", "as_json", "margin", "acr_margin"},
    "gate": {"out", "address", "workers", "resume", "verbose", "as_json", "junit"},
    "ui": {"out", "dry_run", "port", "opened"},
    "methods": {"as_json", "diagnose", "theory"},
    "datasets": {"as_json"},
    "models": {"as_json"},
    "doctor": {"out", "address", "as_json"},
}
LONGEST_MODULE, LONGEST_MEDIAN, LONGEST_FUNCTION, MOST_POSITIONAL = 350, 150, 60, 5


def relative(file):
    return file.relative_to(PACKAGE).as_posix()


def part_of(file):
    """Returns the row of the table that a module belongs to."""
    return Path(relative(file)).parts[0].removesuffix(".py")


def imports(tree):
    """Yields (module, whether inside a function) for all imports except those for type checking."""

    def visit(node, inside):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, inside)
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "raybust":
                yield from ((f"raybust.{alias.name}", inside) for alias in node.names)
            else:
                yield node.module, inside
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from ((a.value, inside) for a in node.args if isinstance(a, ast.Constant))
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(tree, False)


def allowed(part, row):
    """Returns the names a table row allows to import anywhere, and inside functions only."""
    ours, _, others = row.partition("|")
    anywhere, late = {"raybust", "raybust.errors", "raybust." + part}, set()
    for text, prefix in ((ours, "raybust."), (others, "")):
        for brackets, names in re.findall(r"(\(?)([\w\s]+)", text):
            (late if brackets else anywhere).update(prefix + name for name in names.split())
    return anywhere, late


def wrong_edges(part, source, row):
    """Returns the imports of a module's source that its row does not allow."""
    anywhere, late = allowed(part, row)
    found = []
    for module, inside in imports(ast.parse(source)):
        head, *rest = module.split(".")
        name = f"raybust.{rest[0]}" if head == "raybust" and rest else head
        name = "raybust" if name == "raybust.__version__" else name
        if name in sys.stdlib_module_names or name in anywhere or (inside and name in late):
            continue
        found.append(f"{name} (inside functions only)" if name in late else name)
    return found


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_imports(file):
    part = part_of(file)
    assert part in TABLE, "a new part: give it a row in the table"
    wrong = wrong_edges(part, file.read_text(), TABLE[part])
    assert not wrong, f"{relative(file)} may not import {', '.join(wrong)}"
    for module, _ in imports(ast.parse(file.read_text())):
        owners = ALONE.get(module.split(".")[0], part).split()
        assert part in owners, f"{module} is imported in {' and '.join(owners)} alone"


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("certification", "import ray"),
        ("certification", "from raybust import cluster"),
        ("search", "import ray"),
        ("search", "from raybust import reporting"),
        ("certification", "def f():\n    from raybust.track import store"),
        ("data", "from raybust.models import build"),
        ("methods", "import omegaconf"),
        ("numerics", "from raybust.config import Config"),
        ("cli", "import torch"),
        ("cli", "from raybust import stages"),
        ("track", "import mlflow"),
        ("training", "import pytest"),
        ("stages", "from raybust import testing"),
        ("models", "import timm"),
        ("config", "import importlib\nimportlib.import_module('torch')"),
    ],
)
def test_the_import_test_can_fail(part, source):
    assert wrong_edges(part, source, TABLE[part])


def test_the_arrow_has_no_way_back():
    """The table is an acyclic graph."""
    edges = {part: allowed(part, row) for part, row in TABLE.items()}
    below = {
        part: {name.removeprefix("raybust.") for name in anywhere | late if "raybust." in name}
        - {part}
        for part, (anywhere, late) in edges.items()
    }
    while below:
        ends = [part for part, names in below.items() if not names & below.keys()]
        assert ends, f"a cycle among {', '.join(below)}"
        for part in ends:
            del below[part]


def functions(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_module_lengths():
    lengths = {relative(file): len(file.read_text().splitlines()) for file in FILES}
    over = {name: length for name, length in lengths.items() if length > LONGEST_MODULE}
    assert not over, f"longer than {LONGEST_MODULE} lines: {over}"
    assert statistics.median(lengths.values()) < LONGEST_MEDIAN


def test_function_lengths():
    over = [
        f"{relative(file)}:{node.lineno} {node.name}"
        for file in FILES
        for node in functions(file)
        if node.end_lineno - node.lineno + 1 >= LONGEST_FUNCTION
    ]
    assert not over, f"{LONGEST_FUNCTION} lines or more: {over}"


def test_positional_parameters():
    over = {}
    for file in FILES:
        for node in functions(file):
            names = [a.arg for a in node.args.posonlyargs + node.args.args]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MOST_POSITIONAL:
                over[f"{relative(file)}:{node.lineno} {node.name}"] = count
    assert not over, f"more than {MOST_POSITIONAL} positional parameters: {over}"


def test_annotations():
    missing = []
    for file in FILES:
        for node in functions(file):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            every += [a for a in (node.args.vararg, node.args.kwarg) if a is not None]
            bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or node.returns is None:
                missing.append(f"{relative(file)}:{node.lineno} {node.name} {bare}")
    assert not missing, missing


def test_module_docstrings():
    """One to eight lines of text; three or more where the module is longer than 60 lines."""
    wrong = {}
    for file in FILES:
        text = file.read_text()
        lines = [line for line in (ast.get_docstring(ast.parse(text)) or "").split("\n") if line]
        least = 3 if len(text.splitlines()) > 60 else 1
        if not least <= len(lines) <= 8:
            wrong[relative(file)] = len(lines)
    assert not wrong, f"module docstrings of another length: {wrong}"


def test_names_and_notes():
    for file in FILES:
        assert not re.search(r"util|helper|misc|common", relative(file)), relative(file)
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", file.read_text()), relative(file)
    assert (PACKAGE / "py.typed").exists()


def test_options_are_frozen():
    found = {
        name: {p.name for p in command.params if p.param_type_name == "option"}
        for name, command in cli.commands.items()
    }
    assert found.keys() >= OPTIONS.keys()
    for name, options in found.items():
        assert options == OPTIONS.get(name, options & (STAGE | {"name"})), name


HEAVY = ("torch", "ray", "mlflow", "optuna", "omegaconf", "numpy", "scipy", "matplotlib", "yaml",
         "pytest")  # fmt: skip


MAIN = "from raybust.cli import main\ntry:\n    main({!r}.split())\nexcept SystemExit: pass"


@pytest.mark.parametrize(
    "code",
    [
        "import raybust",
        MAIN.format("--help"),
        MAIN.format("ui --help"),
        MAIN.format("trian"),
    ],
    ids=["import", "help", "help of a command", "unknown command"],
)
def test_nothing_heavy_is_loaded(code):
    report = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "raybust" in loaded
    assert not loaded & set(HEAVY)


def test_help_with_settings_loads_the_schema_alone():
    report = "\nimport sys\nprint('\\n', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format("train --help") + report],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "train.lr=" in done.stdout
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded & set(HEAVY) == {"omegaconf", "yaml"}


def test_config_loads_no_stage():
    """Configurations are read, merged and rejected without torch."""
    code = "import raybust.config, sys; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(ast.literal_eval(done.stdout)) & {"torch", "ray", "mlflow", "optuna", "numpy"}
