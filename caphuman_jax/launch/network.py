"""Hosts on one machine: each in a network namespace with an address of its own, or all on the
loopback device.

Namespaces need root and iproute2. Each host is joined to a bridge by a veth pair, so that it can be
cut off: `ip link set NAME down`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from caphuman_jax.errors import SettingError


class Loopback:
    """All hosts share this machine's network."""

    coordinator = ""

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_) -> None:
        pass

    def connect(self) -> None:
        """A free port for the next start."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.coordinator = f"127.0.0.1:{probe.getsockname()[1]}"

    def command(self, host: int) -> tuple[str, ...]:
        """What a host's command is started with."""
        return ()

    def link(self, host: int) -> str:
        """The device that connects a host; none here."""
        return ""


class Namespaces:
    """A namespace for each host, on a bridge of their own.

    Raises:
        SettingError: by `__enter__`, where this machine does not permit it.
    """

    def __init__(self, hosts: int):
        self.hosts, self.name = hosts, f"ch{os.getpid()}"
        # Two jobs on one machine must not share addresses: their bridges would both be routed.
        self.subnet = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.coordinator = f"{self.address(0)}:8476"

    def address(self, host: int) -> str:
        return f"{self.subnet}.{host + 1}"

    def __enter__(self) -> Namespaces:
        _remove_stale()
        try:
            _ip("link", "add", f"{self.name}b", "type", "bridge")
            _ip("link", "set", f"{self.name}b", "up")
            for host in range(self.hosts):
                self._add(host)
        except SettingError:
            self.__exit__()
            raise
        return self

    def _add(self, host: int) -> None:
        space, outer = f"{self.name}-{host}", self.link(host)
        # Gloo listens on the address that the machine's name has; ip-netns mounts this file.
        names = Path("/etc/netns") / space / "hosts"
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text(f"127.0.0.1 localhost\n{self.address(host)} {socket.gethostname()}\n")
        _ip("netns", "add", space)
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", outer, "master", f"{self.name}b", "up")
        _ip("-n", space, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", space, "link", "set", device, "up")

    def __exit__(self, *_) -> None:
        _remove(self.name)

    def connect(self) -> None:
        """Joins every host for the next start, also one that was cut off."""
        for host in range(self.hosts):
            _ip("link", "set", self.link(host), "up")

    def command(self, host: int) -> tuple[str, ...]:
        """What a host's command is started with."""
        return ("ip", "netns", "exec", f"{self.name}-{host}")

    def link(self, host: int) -> str:
        """The device that connects a host."""
        return f"{self.name}v{host}"


def make(kind: str, hosts: int) -> Loopback | Namespaces:
    """ "namespaces", "loopback", or "auto": namespaces for root of a machine that has iproute2."""
    if kind == "auto":
        kind = "namespaces" if os.geteuid() == 0 and shutil.which("ip") else "loopback"
        if kind == "namespaces" and not _permitted():
            kind = "loopback"
    return Namespaces(hosts) if kind == "namespaces" and hosts > 1 else Loopback()


def _permitted() -> bool:
    probe = f"ch{os.getpid()}probe"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "delete", probe)
    except SettingError:
        return False
    return True


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(("ip", *words), capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SettingError(
            "network namespaces need `ip` of iproute2; --network loopback"
        ) from error
    if done.returncode:
        raise SettingError(
            f"this machine does not permit network namespaces (ip {' '.join(words)}: "
            f"{done.stderr.strip()}); --network loopback"
        )


def _remove(name: str) -> None:
    listed = subprocess.run(("ip", "netns", "list"), capture_output=True, text=True).stdout
    for space in (line.split()[0] for line in listed.splitlines() if line.strip()):
        if space.startswith(f"{name}-"):
            subprocess.run(("ip", "netns", "delete", space), capture_output=True)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)
    subprocess.run(("ip", "link", "delete", f"{name}b"), capture_output=True)


def _remove_stale() -> None:
    """What launchers left behind that were killed."""
    for path in Path("/sys/class/net").glob("ch*b"):
        number = path.name[2:-1]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            _remove(f"ch{number}")
