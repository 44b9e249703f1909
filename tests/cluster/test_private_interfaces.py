"""Where raybust leans on what Ray does not promise: one place each, and the versions it works with.

A new Ray fails here first. Try what the place does with it (the test named beside it), then add the
version.
"""

import ast
import inspect
from pathlib import Path

import pytest
import ray
from ray.train.v2._internal import constants
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

import raybust.cluster
from raybust.cluster import autoscaler, scheduler
from raybust.disk import runs

TRIED = ("2.60.",)
"""Versions of Ray with which the tests named below passed."""

PLACES = {
    "autoscaler.py": "node types from the autoscaler's own file, or KubeRay's: test_growth.py",
    "embedded.py": "servers on loopback, and none unasked: test_embedded.py",
    "scheduler.py": "schedulers that replay earlier starts: test_scheduler.py, test_resume.py",
    "worker.py": "Ray Train's list of checkpoints: test_lost.py (drill)",
}


def test_this_ray_was_tried():
    assert ray.__version__.startswith(TRIED), (
        f"Ray {ray.__version__} was not tried; run {', '.join(PLACES.values())}, then add it"
    )


def test_no_other_module_uses_private_names_of_ray():
    for file in Path(raybust.cluster.__file__).parent.glob("*.py"):
        modules = [
            node.module or ""
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.ImportFrom)
        ]
        private = [name for name in modules if name.startswith("ray.") and "._" in name]
        assert not private or file.name in PLACES, f"{file.name}: {private}"


def test_the_list_of_checkpoints_has_its_name():
    assert runs.RAY_RECORD == constants.CHECKPOINT_MANAGER_SNAPSHOT_FILENAME


@pytest.mark.parametrize("base", [ASHAScheduler, MedianStoppingRule])
def test_schedulers_have_what_ours_reach_into(base):
    made = base(time_attr="epoch", metric="acr", mode="max")
    assert {"_time_attr", "_metric"} <= vars(made).keys()
    assert "on_trial_result" in vars(base)
    if base is MedianStoppingRule:
        assert isinstance(made._stopped_trials, set)
    assert {"trial", "result"} <= set(inspect.signature(made.on_trial_result).parameters)
    assert issubclass(scheduler.ResumedASHA, ASHAScheduler)


def test_the_autoscaler_writes_its_file_where_we_look():
    from ray._private import services

    source = inspect.getsource(services.start_monitor)
    assert autoscaler._FILE.rstrip("=") in source
    assert "monitor.py" in source
