"""The commands of the files that `ray up` reads, checked as Ray runs them on a node."""

import subprocess

from ray.autoscaler._private.command_runner import _with_interactive

COMMANDS = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def assert_bash(command):
    """Fails unless a command, wrapped by Ray, is valid bash that ends at its first error."""
    wrapped = " ".join(_with_interactive(command))
    subprocess.run(["bash", "-n", "-c", wrapped], check=True)
    inner = f"export X=1 && ({command})"
    done = subprocess.run(["bash", "-n", "-c", inner], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n" not in command.strip() or command.startswith("set -e\n")
