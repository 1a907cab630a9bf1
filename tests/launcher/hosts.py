"""Hosts of a private network, each in Linux namespaces of its own: a laptop, and machines with an SSH server.

A host has its own network, processes, home and /tmp/ray; the rest of the file system is this machine's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

BIN = Path(sys.prefix) / "bin"
NETWORK = "10.77.0"
TOOLS = ("bash", "ip", "nsenter", "rsync", "ss", "ssh", "ssh-keygen", "sshd", "unshare")
NAMESPACES = ("--net", "--pid", "--mount", "--uts")
TRY = "mount -t tmpfs run /run && ip link add type bridge && ip link add type veth"
# The first process of a host: the kernel ends all others with it, and it ends when its input does.
BOOT = """
set -e
hostname "$(basename "$PWD")"
mount --bind ray /tmp/ray
mount --bind passwd /etc/passwd
mount -t tmpfs run /run
mkdir /run/sshd
ip link set lo up
[ ! -f sshd_config ] || "$(command -v sshd)" -f sshd_config -E sshd.log
echo ready
read -r || true
"""
SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
PidFile none
"""


def why_not() -> str:
    """Why there can be no such hosts here; empty where there can."""
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"hosts in namespaces need {', '.join(lacking)} (Debian: openssh-server, iproute2, rsync)"
    tried = subprocess.run(
        ["unshare", *NAMESPACES, "--fork", "bash", "-c", TRY], capture_output=True, text=True, check=False
    )
    return f"no hosts in namespaces are allowed here: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """A running host, named like its folder."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.name = folder.name
        self.home = folder / "home"
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", (folder / "boot.log").read_text()
        (first,) = psutil.Process(process.pid).children()
        self.pid = first.pid  # of its first process, as this machine numbers it
        path = f"PATH={BIN}:{os.environ['PATH']}"
        self._environment = ["env", "-i", path, f"HOME={self.home}", f"TMPDIR={folder / 'tmp'}"]

    def inside(self, *command: str | Path) -> list[str]:
        """A command that runs another one here, in its home."""
        enter = ["nsenter", "--target", str(self.pid), *NAMESPACES, f"--wd={self.home}"]
        return [*enter, *self._environment, *map(str, command)]

    def run(self, *command: str | Path, seconds: float = 240) -> str:
        """What a command prints here; it has to succeed."""
        result = subprocess.run(
            self.inside(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert result.returncode == 0, f"{self.name}: {' '.join(map(str, command))}\n{result.stdout}"
        return result.stdout

    def processes(self) -> list[str]:
        """The command lines of all processes."""
        return self.run("ps", "-eo", "args", "--no-headers").splitlines()

    def listening(self) -> dict[int, set[str]]:
        """The addresses at which something listens for TCP connections, by port."""
        ports: dict[int, set[str]] = {}
        for line in self.run("ss", "-Hltn").splitlines():
            address, _, port = line.split()[3].rpartition(":")
            ports.setdefault(int(port), set()).add(address)
        return ports


class Network:
    """A laptop, and hosts that it reaches by SSH as root with the key in its home."""

    def __init__(self, laptop: Host, hosts: Sequence[Host]) -> None:
        self.laptop = laptop
        self.hosts = hosts
        self._link("add", "bridge", "type", "bridge")
        self._link("set", "bridge", "up")
        laptop.run("ip", "address", "add", f"{NETWORK}.1/24", "dev", "bridge")
        for host in hosts:
            self._link("add", host.name, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
            self._link("set", host.name, "master", "bridge", "up")
            host.run("ip", "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")

    def _link(self, *words: str) -> None:
        """Change a link in the laptop's network, with processes as this machine numbers them."""
        enter = ["nsenter", "--target", str(self.laptop.pid), "--net"]
        subprocess.run([*enter, "ip", "link", *words], check=True)

    def address(self, host: Host) -> str:
        """The address of a host."""
        return f"{NETWORK}.{self.hosts.index(host) + 2}"

    @contextmanager
    def cut_off(self, host: Host) -> Iterator[None]:
        """Within the block no packet leaves the host, or reaches it."""
        self._link("set", host.name, "down")
        yield
        self._link("set", host.name, "up")


@contextmanager
def network_of(folder: Path, *names: str) -> Iterator[Network]:
    """A network of hosts with these names, for the time of the block; it ends with this process too."""
    Path("/tmp/ray").mkdir(exist_ok=True)  # a host's own is mounted over it
    with ExitStack() as stack:
        laptop = _boot(folder / "laptop", stack)
        key = laptop.home / ".ssh" / "id_ed25519"
        key.parent.mkdir()
        _make_key(key)
        hosts = []
        for name in names:
            _install_sshd(folder / name, key.with_suffix(".pub"))
            hosts.append(_boot(folder / name, stack))
        yield Network(laptop, hosts)


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _install_sshd(folder: Path, authorized: Path) -> None:
    folder.mkdir()
    shutil.copy(authorized, folder / "authorized_keys")
    _make_key(folder / "host_key")
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))


def _boot(folder: Path, stack: ExitStack) -> Host:
    """A host that ends with the stack."""
    for name in ("home", "ray", "tmp"):
        (folder / name).mkdir(parents=True)
    users = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
    root = f"root:x:0:0:root:{folder / 'home'}:/bin/bash"
    (folder / "passwd").write_text("\n".join([root, *users]) + "\n")
    with (folder / "boot.log").open("w") as log:
        process = subprocess.Popen(
            ["unshare", *NAMESPACES, "--fork", "--mount-proc", "--kill-child", "bash", "-c", BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
        )
    stack.callback(process.communicate)
    return Host(folder, process)
