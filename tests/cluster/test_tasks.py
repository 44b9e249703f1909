"""The number of tasks that run at a time."""

import itertools
import time

import kit
import pytest

from raybust.cluster.tasks import room_for, run_tasks
from raybust.errors import WorkError

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("room", [1, 2])
def test_as_many_run_at_a_time_as_were_asked_for(cluster, tmp_path, room):
    """Ray would run all submitted tasks, so one worker must not submit two."""

    def work(number):
        began = time.time()
        time.sleep(0.3)
        return number, began, time.time()

    config = kit.config(tmp_path)
    assert room_for(cluster, config, room) == room
    done = list(run_tasks(cluster, config, room, work, [(n,) for n in range(6)]))
    assert sorted(number for number, _, _ in done) == list(range(6))
    spans = sorted((began, ended) for _, began, ended in done)
    overlaps = sum(after[0] < before[1] for before, after in itertools.pairwise(spans))
    assert (overlaps > 0) == (room > 1)


def test_what_a_task_raises_is_told_in_one_line(cluster, tmp_path):
    def work(number):
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    with pytest.raises(WorkError, match=r"RuntimeError: CUDA out of memory. Tried to.*is kept$"):
        list(run_tasks(cluster, kit.config(tmp_path), 1, work, [(1,)]))
