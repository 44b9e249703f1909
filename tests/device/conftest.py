"""These tests run in processes that have the device "pretend": `make device` of `make test`."""

import os
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "certify"), str(HERE.parent / "evaluate")]

collect_ignore_glob = []
if torch._C._get_privateuse1_backend_name() != "pretend":
    collect_ignore_glob += ["test_*.py"]
    if os.environ.get("RAYBUST_DEVICE") == "pretend":
        raise RuntimeError("the device is not there: run `make device`")
