"""A disk that becomes full or read-only during a run: one line, nothing lost.

On an isolated host, because the test needs its own file system; `raybust train` runs there with its
own Ray, as on a laptop.
"""

from pathlib import Path

import pytest
from isolated import ROOT, Network
from lab import furnish
from waiting import wait

from raybust.disk import checkpoint

pytestmark = pytest.mark.hosts

TRAIN = (
    "raybust train method.name=gaussian method.sigma=0.25 model.width=48 train.epochs=40"
    " train.batch_size=128 certified_fast.examples=5 certified_fast.n=100"
    " --name disk --out /mnt/disk"
)


@pytest.fixture
def host(tmp_path):
    made = Network(tmp_path, "10.77.1").add("disk")
    furnish(made, python=True)
    (made.home / "raybust").symlink_to(ROOT)
    made.run("ray get-auth-token --generate > /dev/null")
    yield made
    made.end()


FAULTS = {
    "full": ("dd if=/dev/zero of=/mnt/disk/rest bs=64k 2> /dev/null; df -h /mnt/disk",
             "rm /mnt/disk/rest", "No space left"),
    "read-only": ("mount --bind /mnt/disk /mnt/disk && mount -o remount,ro,bind /mnt/disk",
                  "umount /mnt/disk", "Read-only"),
}  # fmt: skip
"""What happens to the disk, what repairs it, what the message must contain."""


@pytest.mark.parametrize("fault", FAULTS)
def test_the_last_good_checkpoint_is_intact_and_the_run_goes_on(host, fault):
    host.run("mkdir /mnt/disk && mount -t tmpfs -o size=200m tmpfs /mnt/disk")
    run = host.start(TRAIN)
    folder = Path(f"/proc/{host.pid}/root/mnt/disk/disk")
    wait(lambda: checkpoint.newest(folder) is not None, 90, "the first checkpoint")
    harm, mend, words = FAULTS[fault]
    host.run(harm)
    said, _ = run.communicate(timeout=180)
    print(said)
    assert run.returncode == 1
    last = said.splitlines()[-1]
    assert words in last
    assert "rerun the same command to resume" in last
    assert "Traceback" not in said
    newest = checkpoint.newest(folder)
    assert newest is not None
    before = checkpoint.epoch_of(newest)
    host.run(mend)
    again = host.run(TRAIN, timeout=240)
    assert f"resuming at epoch {before}" in again
    steps = [int(line.split()[1]) for line in again.splitlines() if line.startswith("epoch")]
    assert steps[-1] == 40
