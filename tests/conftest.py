"""What tests of several folders share: the command line in this process."""

import os
import sys
from typing import NamedTuple

import pytest

os.environ.pop("MLFLOW_TRACKING_URI", None)


class Result(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys, monkeypatch):
    """Runs `raybust ARGUMENTS` in this process and returns a `Result`."""
    from raybust.cli import main

    def run(*arguments):
        arguments = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["raybust", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return Result(ended.value.code, *capsys.readouterr())

    return run
