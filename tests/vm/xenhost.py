"""A machine with Xen in it: QEMU's emulation of one, a Debian dom0, and a shell in that.

One processor, since QEMU's emulation of AMD's SVM mixes up two (a PVH guest ends in a triple fault); `qemu64`, since
dom0 does not bear `max`. The network cards are taps on bridges of a ground, each on a bridge of the same name in dom0.
"""

from __future__ import annotations

import io
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import paramiko
from pyroute2 import IPRoute  # type: ignore[import-untyped]

from mgmt.hosts import processes
from mgmt.hosts.driver import DriverError
from mgmt.hosts.namespace import Namespace, delete_link, link_name, quieten
from tests.vm.dom0 import Dom0, dom0

ADDRESS = "169.254.255.250/20"  # dom0's own, on the control network
MEMORY_MIB, DOM0_MIB = 2560, 1024
BOOT_SECONDS = 900.0  # 40 s on an idle machine, and tests run on busy ones
ANSWER_SECONDS = 900.0
DISK = "4G"  # room for a VHD to grow in
FIRST_DISK = "vdb"  # vda is dom0's own


class XenHost:
    """`vhd` is given to it as `disks` block devices, /dev/vdb and on; what is written to them is lost with the host."""

    def __init__(self, ground: Namespace, folder: Path, bridges: Sequence[str], vhd: Path, disks: int) -> None:
        self.ground, self.folder, self.bridges = ground, folder, tuple(bridges)
        self.vhd, self.disks = vhd, disks
        self.boot_s = 0.0
        self._made: Dom0 | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._shell: paramiko.SSHClient | None = None

    @property
    def pid(self) -> int:
        """QEMU's, 0 where it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else 0

    @property
    def console(self) -> Path:
        """What Xen and dom0 say."""
        return self.folder / "dom0.log"

    def power_on(self) -> None:
        """Boot it; back when xl can be used. One that runs is left alone. Raises DriverError."""
        if self.pid:
            return
        self._made = dom0()
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            with (self.folder / "qemu.log").open("wb") as words, ExitStack() as stack:
                command = self._command(self._made)
                stack.enter_context(self.ground.entered())
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True
                )
            self._wait(started + BOOT_SECONDS)
        except BaseException:
            self.power_off()
            raise
        self.boot_s = time.monotonic() - started

    def power_off(self) -> None:
        """Pull the plug."""
        if self._shell:
            self._shell.close()
            self._shell = None
        if self._process:
            if found := processes.process(self._process.pid):
                processes.end(found)
            self._process.wait()
            self._process = None
        if self.ground.path.exists():
            for bridge in self.bridges:
                delete_link(self.ground, self._tap(bridge))

    def run(self, command: str, stdin: bytes = b"", seconds: float = ANSWER_SECONDS) -> str:
        """A shell's command in dom0; its output. Raises DriverError with its words where it fails."""
        channel = self.channel(command)
        with channel:
            channel.settimeout(seconds)
            channel.set_combine_stderr(True)
            try:
                channel.exec_command(command)
                channel.sendall(stdin)
                channel.shutdown_write()
                said = channel.makefile("rb").read().decode(errors="replace")
                status = channel.recv_exit_status()
            except (OSError, paramiko.SSHException) as error:
                raise DriverError(f"dom0: {command}: {error!r}") from error
        if status:
            raise DriverError(f"dom0: {command} ended in {status}: {said.strip()}")
        return said

    def channel(self, what: str) -> paramiko.Channel:
        """A channel to dom0's shell, nothing run in it yet."""
        transport = self._shell.get_transport() if self._shell else None
        if transport is None or not transport.is_active():
            raise DriverError(f"dom0: not reached for {what}; its console: {self.console}")
        try:
            return transport.open_session(timeout=30.0)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise DriverError(f"dom0: does not answer to {what}: {error!r}; its console: {self.console}") from error

    def _wait(self, deadline: float) -> None:
        while True:
            try:
                if not self._shell:
                    self._shell = self._connect()
                self.run("test -e /run/dom0-ready")
                return
            except (OSError, EOFError, paramiko.SSHException, DriverError):
                if not self.pid or time.monotonic() > deadline:
                    raise DriverError(f"dom0 does not come up: {self._last_words()}") from None
                time.sleep(0.5)

    def _last_words(self) -> str:
        """Of QEMU, and of dom0's console."""
        said = [path.read_text(errors="replace") for path in (self.folder / "qemu.log", self.console) if path.exists()]
        return "\n  ".join("".join(said).splitlines()[-20:]) or "not a word"

    def _connect(self) -> paramiko.SSHClient:
        assert self._made
        client, host = paramiko.SSHClient(), ADDRESS.partition("/")[0]
        kind, blob = self._made.host_key.split()[:2]
        known = paramiko.hostkeys.HostKeyEntry.from_line(f"{host} {kind} {blob}")
        assert known
        assert known.key
        client.get_host_keys().add(host, kind, known.key)
        with ExitStack() as stack:
            stack.callback(client.close)
            client.connect(
                host, username="root", sock=self.ground.connect(host, 22, 2.0),
                pkey=paramiko.Ed25519Key.from_private_key(io.StringIO(self._made.key.private)),
                look_for_keys=False, allow_agent=False, banner_timeout=60.0, auth_timeout=60.0,
            )  # fmt: skip
            stack.pop_all()
        return client

    def _command(self, made: Dom0) -> list[str]:
        argv = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc",
            "-accel", "tcg", "-cpu", "qemu64,+svm,+npt", "-smp", "1", "-m", str(MEMORY_MIB),
            "-kernel", str(made.hypervisor),
            "-append", f"console=com1 com1=115200,8n1 loglvl=warning dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M",
            "-drive", f"file={made.disk},format=raw,if=virtio,snapshot=on,cache=unsafe",
            "-device", "virtio-rng-pci",
            "-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console",
        ]  # fmt: skip
        for number in range(self.disks):
            overlay = self.folder / f"disk{number}.qcow2"
            tool = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(self.vhd), "-F", "raw", str(overlay), DISK]
            subprocess.run(tool, check=True, capture_output=True)
            argv += ["-drive", f"file={overlay},format=qcow2,if=virtio,cache=unsafe"]
        pairs = []
        for number, bridge in enumerate(self.bridges):
            mac = f"02:00:5e:00:0d:{number:02x}"
            pairs.append(f"{bridge}/{mac}")
            argv += ["-netdev", f"tap,id=n{number},ifname={self._make_tap(bridge)},script=no,downscript=no"]
            argv += ["-device", f"virtio-net-pci,netdev=n{number},mac={mac},romfile="]
        # A comma parts the modules of a multiboot kernel; one that is meant is doubled.
        words = [
            "root=/dev/vda", "rw", "init=/usr/lib/dom0-init", "console=hvc0", "net.ifnames=0", "fsck.mode=skip",
            "quiet", "loglevel=4", "panic=10", f"dom0.address={ADDRESS}", f"dom0.bridges={',,'.join(pairs)}",
        ]  # fmt: skip
        return [*argv, "-initrd", f"{made.kernel} {' '.join(words)},{made.initrd}"]

    def _tap(self, bridge: str) -> str:
        return link_name(f"dom0-{os.getpid()}", bridge)

    def _make_tap(self, bridge: str) -> str:
        tap = self._tap(bridge)
        delete_link(self.ground, tap)
        with self.ground.entered(), IPRoute() as netlink:
            master = netlink.link_lookup(ifname=bridge)
            if not master:
                raise DriverError(f"dom0: there is no bridge {bridge}; create it first")
            netlink.link("add", ifname=tap, kind="tuntap", mode="tap")
            with suppress(OSError):
                quieten(tap)
            index = netlink.link_lookup(ifname=tap)[0]
            netlink.link("set", index=index, master=master[0], state="up")
        return tap
