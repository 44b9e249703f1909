"""Options shared by the commands; everything else is key=value on the schema.

An option is for what is not part of an experiment: where the work runs, what happens to earlier
work of that name, how the result is printed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raybust.disk.files import is_aside
from raybust.errors import RequestError

_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "name": (("--name",), {"help": "Name of the run or sweep."}),
    "out": (("--out",), {"help": "Folder for all output (default: runs)."}),
    "address": (("--address",), {"help": "Ray address, or a jobs URL (http://127.0.0.1:8265)."}),
    "detach": (("--detach",), {"is_flag": True, "help": "Submit to a jobs URL without waiting."}),
    "workers": (("--workers",), {"type": int, "help": "DDP workers per run, or tasks at a time."}),
    "resume": (
        ("--resume/--no-resume",),
        {"default": True, "help": "Resume existing work (default), or start over."},
    ),
    "dry_run": (("--dry-run",), {"is_flag": True, "help": "Validate and print; run nothing."}),
    "verbose": (
        ("--verbose",),
        {"is_flag": True, "help": "Show Ray's output; with --dry-run, every setting."},
    ),
    "as_json": (("--json", "as_json"), {"is_flag": True, "help": "Print the result as JSON."}),
}


def options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that adds shared options to a command."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names):
            flags, settings = _OPTIONS[name]
            function = click.option(*flags, **settings)(function)
        return function

    return decorate


def _as_file_name(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    if name is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name) or is_aside(Path(name)):
        raise RequestError(
            f"--name: got {name!r}, expected at most 100 letters, digits, '.', '_' and '-'"
        )
    return name


result_name = click.option(
    "--name",
    "result",
    callback=_as_file_name,
    help="Name of the result files (default: derived from the protocol).",
)
