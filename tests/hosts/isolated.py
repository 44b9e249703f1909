"""Hosts on one machine: each has its own network, mounts, processes and name, and runs sshd.

Nothing is created outside their namespaces except one temporary folder. A host stops with the
process that started it, and its processes stop with it; they can neither see nor touch other
processes.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
from waiting import wait

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = ("/etc", "/mnt", "/root", "/run", "/tmp")
"""Folders that are private to each host and hide those outside."""

INIT = r"""
set -e
own=$1 shared=$2 name=$3; shift 3
mount --make-rprivate /
hostname "$name"
mkdir -p "$own"/etc "$own"/root "$own"/tmp
cp -a /etc/. "$own"/etc
chmod 1777 "$own"/tmp
for folder in "$@"; do
  mkdir -p "$own$folder"
  mount --rbind "$folder" "$own$folder"
done
mkdir -p "$own"/mnt/raybust "$own"/run/sshd
mount --bind "$shared" "$own"/mnt/raybust
mount -t tmpfs tmpfs /dev/shm
for folder in etc mnt root run; do mount --rbind "$own/$folder" "/$folder"; done
mount --rbind "$own"/tmp /tmp
ip link set lo up
exec /usr/sbin/sshd -D -e -o UsePAM=no -o PermitRootLogin=prohibit-password \
  -o StrictModes=no -o PasswordAuthentication=no -o MaxStartups=100 -o MaxSessions=100
"""


def missing():
    """Returns why there can be no isolated hosts here, or None."""
    programs = ("sshd", "ssh", "ip", "rsync", "unshare", "nsenter", "setpriv")
    absent = [name for name in programs if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
              is None]  # fmt: skip
    if absent:
        return f"not installed: {', '.join(absent)}"
    probe = ["unshare", "-n", "-m", "-p", "-f", "-u", "--mount-proc", "ip", "link", "add", "rb0",
             "type", "bridge"]  # fmt: skip
    done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode:
        return f"no namespaces without root: {' '.join(done.stderr.split())[:200]}"
    return None


def software():
    """Paths that must be visible on a host even if they are in a hidden folder."""
    found = {ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    return sorted(str(path) for path in found if str(path).startswith(HIDDEN))


class Host:
    """A separate machine.

    Args:
        folder: an empty folder for its disk.
        shared: the folder that all hosts see as /mnt/raybust.
        name: its host name.
    """

    def __init__(self, folder, shared, name):
        self.name, self.disk = name, folder
        folder.mkdir()
        self.log = (folder.parent / f"{name}.log").open("w")
        self.unshare = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL",
             "unshare", "-n", "-m", "-p", "-f", "-u", "--mount-proc", "--kill-child",
             "bash", "-c", INIT, "init", folder, shared, name, *software()],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        self.pid = wait(self._init, 20, f"{name} has its first process").pid

    def _init(self):
        children = psutil.Process(self.unshare.pid).children()
        ready = children and "sshd" in children[0].name()
        assert self.unshare.poll() is None, Path(self.log.name).read_text()
        return children[0] if ready else None

    @property
    def home(self):
        """The home folder as seen from outside."""
        return self.disk / "root"

    def start(self, command, **options):
        """Starts a command in a login shell on the host; returns the process."""
        inside = ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "-u", "--wd=/root",
                  "env", "-i", "HOME=/root", "USER=root", "TERM=dumb", "LANG=C.UTF-8",
                  "bash", "-lc", f". ~/.bashrc; cd ~/raybust 2> /dev/null; {command}"]  # fmt: skip
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        print(f"\n{self.name}$ {command}", flush=True)
        return subprocess.Popen(inside, text=True, stdin=subprocess.DEVNULL, **options)

    def run(self, command, timeout=120, code=0):
        """Runs a command on the host; returns its output. Fails on another exit code and shows the
        end of the output."""
        began = time.monotonic()
        process = self.start(command)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            output += f"\nNOT DONE AFTER {timeout} s"
        print(
            "\n".join(output.rstrip().split("\n")[-40:]) + f"\n[{time.monotonic() - began:.1f} s]",
            flush=True,
        )
        assert process.returncode == code, f"{command}: exit code {process.returncode}\n{output}"
        return output

    def processes(self):
        """All processes on the host except the first."""
        own, found = os.readlink(f"/proc/{self.pid}/ns/pid"), []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == own and process.pid != self.pid:
                    found.append(process)
        return found

    def end(self):
        """Turns the host off, as if unplugged."""
        self.unshare.kill()
        self.unshare.wait()
        self.log.close()


class Network:
    """Hosts connected by a bridge, which belongs to the first of them."""

    def __init__(self, folder, subnet):
        self.folder, self.subnet = folder, subnet
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.hosts = []

    def add(self, name):
        """Adds and returns a host. The first one creates the ssh key for all of them."""
        host = Host(self.folder / f"{name}-{len(self.hosts)}", self.shared, name)
        self.hosts.append(host)
        first, number = self.hosts[0], len(self.hosts)
        host.address = f"{self.subnet}.{number}"
        ssh = host.home / ".ssh"
        ssh.mkdir(mode=0o700)
        if host is first:
            _sh(f"ssh-keygen -q -t ed25519 -N '' -f {ssh}/id_ed25519")
            _inside(host, f"ip link add rb0 type bridge && ip link set rb0 up &&"
                          f" ip addr add {host.address}/24 dev rb0")  # fmt: skip
        else:
            _sh(f"ip link add rb{number} netns {first.pid} type veth"
                f" peer name eth0 netns {host.pid}")  # fmt: skip
            _inside(first, f"ip link set rb{number} master rb0 up")
            _inside(host, f"ip addr add {host.address}/24 dev eth0 && ip link set eth0 up &&"
                          f" ip route add default via {first.address}")  # fmt: skip
        shutil.copy(first.home / ".ssh/id_ed25519.pub", ssh / "authorized_keys")
        (host.disk / "etc/hosts").write_text(f"127.0.0.1 localhost\n{host.address} {name}\n")
        return host

    def end(self):
        """Turns all hosts off."""
        for host in reversed(self.hosts):
            if host.unshare.poll() is None:
                host.end()


def _inside(host, command):
    _sh(f"nsenter -t {host.pid} -n -m -u sh -c '{command}'")


def _sh(command):
    subprocess.run(["sh", "-c", command], check=True)
