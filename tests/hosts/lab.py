"""A laptop, a head and a worker, and the cluster that `ray up` creates from them."""

import contextlib
import shutil
import subprocess
import sys

import psutil
import yaml
from isolated import ROOT
from waiting import wait

JOBS = "http://127.0.0.1:8265"
COPIED = ("raybust", "search_spaces", "examples", "pyproject.toml", "requirements.lock",
          "README.md", "LICENSE")  # fmt: skip


def furnish(host, *, python):
    """Gives a host a login shell, with Python if asked for, as on a person's machine."""
    lines = ["export PYTHONPATH=$HOME/raybust RAY_UP_enable_autoscaler_v2=0",
             "export RAY_AUTH_MODE=token OMP_NUM_THREADS=1"]  # fmt: skip
    if python:
        lines.append(f"export PATH={sys.prefix}/bin:$PATH")
    (host.home / ".bashrc").write_text("\n".join(lines) + "\n")
    (host.home / ".bash_profile").write_text(". ~/.bashrc\n")


class Lab:
    """A laptop with just ssh and the checkout, a head, and a worker."""

    def __init__(self, network):
        self.network, self.shared = network, network.shared
        self.laptop, self.head = network.add("laptop"), network.add("rb1")
        self.worker = network.add("rb2")
        checkout = self.laptop.home / "raybust"
        checkout.mkdir()
        for name in COPIED:
            source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, checkout / name, ignore=ignored)
            else:
                shutil.copy(source, checkout / name)
        for host in network.hosts:
            furnish(host, python=host is self.laptop)
        (checkout / "mine.yaml").write_text(yaml.safe_dump(self.filled_in()))
        self.tunnel = None

    def filled_in(self):
        """examples/local.yaml with its blanks filled in. Uses the tests' environment instead of an
        installation, which would need the Internet, and one CPU per host, so that two workers never
        share one."""
        text = (ROOT / "examples/local.yaml").read_text()
        for blank, value in (("192.0.2.10", self.head.address), ("192.0.2.11", self.worker.address),
                             ("ssh_user: ubuntu", "ssh_user: root"),
                             ("ray start ", "ray start --num-cpus=1 ")):  # fmt: skip
            assert blank in text
            text = text.replace(blank, value)
        cluster = yaml.safe_load(text)
        (install,) = [c for c in cluster["setup_commands"] if "uv pip install" in c]
        at = cluster["setup_commands"].index(install)
        cluster["setup_commands"][at] = f"ln -sfn {sys.prefix} ~/venv"
        return cluster

    def python(self, code):
        """The output of Python code on the head, connected to the cluster."""
        start = "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False)"
        return self.head.run(f'python -W ignore -c "{start}\n{code}" 2> /dev/null')

    def nodes(self):
        """Addresses of the live nodes, according to the head."""
        alive = "[n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']]"
        return sorted(self.python(f"print(*{alive})").split())

    def wait_for_both(self, seconds=120):
        both = sorted([self.head.address, self.worker.address])
        wait(lambda: self.nodes() == both, seconds, "head and worker are in the cluster")

    def open_tunnel(self):
        """Opens the ssh tunnel through which the laptop reaches jobs, dashboard and MLflow."""
        self.tunnel = self.laptop.start(
            "exec ssh -N -o ServerAliveInterval=15 -o ExitOnForwardFailure=yes"
            " -L 8265:127.0.0.1:8265 -L 5000:127.0.0.1:5000"
            " -o StrictHostKeyChecking=accept-new root@$(ray get-head-ip mine.yaml | tail -1)",
            stdout=subprocess.DEVNULL,
        )
        wait(lambda: "200" in self.answer("http://127.0.0.1:5000/health"), 90, "MLflow answers")

    def close_tunnel(self):
        for process in self.laptop.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "ssh" and "-N" in process.cmdline():
                    process.kill()
        self.tunnel.wait()

    def answer(self, url, host=None):
        """The status code that a host gets from a URL, 000 if nothing answers."""
        command = f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' {url} || true"
        return (host or self.laptop).run(command).split("\n")[-1]
