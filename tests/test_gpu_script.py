"""`make gpu` at toy size: every part runs, and what it checks holds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("losses", "certificates", "attacks", "certify", "loop", "pgd", "steps")
"""All but the quickstart sweep, which `.ci/run` starts anyway."""


@pytest.mark.slow
def test_the_parts_run_on_a_cpu():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py", *PARTS], capture_output=True, text=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, [line for line in lines if "failed" in line]
    assert [line["part"] for line in lines if "seconds" in line] == list(PARTS)
    checked = {line["name"]: line["holds"] for line in lines if line.get("holds") is not None}
    assert len(checked) >= 15
    assert [name for name, holds in checked.items() if not (holds or "loop" in name)] == []
