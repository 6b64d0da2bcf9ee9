"""Beside keepalived and conntrackd of a router of two (redundancy.py): what neither of them knows.

    python3 FOLDER peer.json

A program of its own, of the standard library alone, with peer_files.py and peer_packets.py in a folder of the machine.

- It hears its role from keepalived by a FIFO, and does what belongs to it: a primary commits the flows that it was told
  of, a backup lets those go that it does not need. After a start of its own it looks who has the address that VRRP
  carries: what it missed is made good.
- Every interval it tells the other member its role and its document's digest, by UDP on the interface they meet on.
- From what it hears it makes `hold`, which keepalived adds to its priority:

      0       nothing stands against this member
      -253    the other is the router and has another document: take over only when it is silent (a document is pushed
              to one after the other, and the one that is behind must not win over the one that is ahead)
      -254    a fault, in VRRP's words: both have been the router for SPLIT_S while they hear each other, and the other
              is the stronger. VRRP itself ends that sooner where its advertisements pass, and it lasts until they do.
              Or the link on which they meet has lost its carrier: in a virtual machine that is no death of the other's,
              and who is not the router leaves it to who was.

- Where the other has been the router too, neighbours may take the addresses to be there: the primary announces them
  again (keepalived does when it becomes primary, and when it hears a weaker one, which may have stepped back before).
- Files of the primary are sent to the other within an interval of their change. Strangers' leases: who takes over asks
  its own DHCP server for each as if it were the guest that renews: an authoritative server takes it from there (RFC
  2131, 4.3.2). Which passwords were acknowledged (metadata_given.py): no guest is given one twice.
- `report` says it all: {"ok", "words", ...}.

Nobody but the other member's address is listened to; what it says is no secret. It is believed as VRRP's own
advertisements are: whoever may send on that link with that address could be the router anyway.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from router.peer_files import Followed, write
from router.peer_packets import advertised, advertisement, gratuitous, link_local, number, renewal

FREE, BEHIND, FAULT = 0, -253, -254
SILENT = 3  # intervals without a word, and the other is taken for dead
SLACK_S = 0.5  # that a word may be late on a busy machine
SPLIT_S = 2.0
REPORT_S = 5.0
TOOL_S = 20.0
RENEWALS_PER_S = 2000
VRRP = 112  # its protocol number
GET_FLAGS, RUNNING = 0x8913, 0x40  # SIOCGIFFLAGS, IFF_RUNNING: netdevice(7)
ROLES = {"MASTER": "primary", "BACKUP": "backup", "FAULT": "fault", "STOP": "stopped", "DELETED": "stopped"}
DEEDS = {"primary": ("-c", "-f", "-R", "-B"), "backup": ("-t", "-n"), "fault": ("-t",)}  # conntrackd(8)

Json = dict[str, Any]


class Peer:
    """One member's knowledge of itself and of the other."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.told: Json = json.loads(Path(path).read_text())
        self.run = Path(self.told["run"])
        self.followed = Followed(self.told)
        self.role = "unknown"
        self.since = time.time()
        self.heard: Json = {}
        self.heard_at = 0.0
        self.split_at = 0.0
        self.splits = 0
        self.hold: int | None = None
        self.reported = ("", 0.0)
        self.fifo = self._open_fifo()
        self.socket = self._open_socket()
        self.vrrp = socket.socket(socket.AF_INET, socket.SOCK_RAW, VRRP)
        self.vrrp.setblocking(False)
        self.advertised_at = 0.0

    # --- the way to keepalived, and to the other

    def _open_fifo(self) -> int:
        path = self.run / "roles"
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK)  # with a writer of our own it never ends

    def _reopen_fifo(self) -> None:
        """keepalived removes it when it ends, and makes another."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.run / "roles"), os.fstat(self.fifo)):
                return
        os.close(self.fifo)
        self.fifo = self._open_fifo()

    def _open_socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((self.told["own"], self.told["port"]))
        sock.setblocking(False)
        return sock

    def reload(self) -> None:
        """Take what the file says now: another document, as a rule."""
        before, self.told = self.told, json.loads(Path(self.path).read_text())
        self.followed.told = self.told
        if (before["own"], before["port"]) != (self.told["own"], self.told["port"]):
            self.socket.close()
            self.socket = self._open_socket()

    # --- the role

    def learn(self) -> None:
        """The role from what is so: whether the address of the sign is here."""
        listing = Path("/proc/net/fib_trie").read_text()
        _, found, rest = listing.partition(f"|-- {self.told['sign']}\n")
        is_primary = bool(found) and "/32 host LOCAL" in rest[:60]
        self.become("primary" if is_primary else self.role if self.role == "fault" else "backup")

    def listen(self) -> None:
        """What keepalived says: `INSTANCE "router" MASTER 250`, a line for each change."""
        try:
            lines = os.read(self.fifo, 65536).decode(errors="replace").splitlines()
        except BlockingIOError:
            return
        for line in lines:
            words = line.split()
            if len(words) >= 3 and words[0] == "INSTANCE" and words[2] in ROLES:
                self.become(ROLES[words[2]])

    def become(self, role: str) -> None:
        if role == self.role:
            return
        say(f"{self.role} -> {role}")
        before, self.role, self.since = self.role, role, time.time()
        if role == "primary" or before == "primary":
            self.show_the_way()
        self.tell()
        for deed in DEEDS.get(role, ()):
            self._flows(deed)
        if role == "primary":
            for lease in self.told["leases"]:
                self._renew(lease)

    def _flows(self, deed: str) -> None:
        try:
            done = subprocess.run(
                [*self.told["flows"], deed], capture_output=True, text=True, timeout=TOOL_S, check=False
            )
            if done.returncode:
                say(f"conntrackd {deed}: {(done.stderr or done.stdout).strip()[:200]}")
        except (OSError, subprocess.TimeoutExpired) as error:
            say(f"conntrackd {deed}: {error}")

    # --- the other member

    def tell(self) -> None:
        """Our role and document, and which leases we have of the other's."""
        told = {k: self.told[k] for k in ("member", "document")}
        self._send({**told, "role": self.role, "splits": self.splits, "kept": self.followed.copies()})

    def _send(self, told: Json) -> None:
        with contextlib.suppress(OSError):  # no link, no way, nobody there: silence says it
            self.socket.sendto(json.dumps(told).encode(), (self.told["other"], self.told["port"]))

    def hear(self) -> None:
        while True:
            try:
                data, (source, _) = self.socket.recvfrom(65536)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP answer to what we sent
            if source != self.told["other"]:
                continue
            try:
                told = json.loads(data)
                if "part" in told:
                    if self.role != "primary":
                        self.followed.keep(told)
                elif told["member"] == self.told["peer"]:
                    before = self.other_role
                    self.heard, self.heard_at = told, time.monotonic()
                    if self.role == "primary" != self.other_role and before in ("silent", "primary"):
                        self.announce()
                    if self.role == "primary":
                        self.followed.send(told.get("kept", {}), self._send)
            except (ValueError, KeyError, TypeError):
                say("the other member said what cannot be understood; it may be of another release")

    def hear_vrrp(self) -> None:
        """The raw socket has a copy of what keepalived gets."""
        with contextlib.suppress(BlockingIOError):
            while True:
                _, (source, _) = self.vrrp.recvfrom(2048)
                if source == self.told["other"]:
                    self.advertised_at = time.monotonic()

    def _is_late(self, at: float) -> bool:
        return bool(time.monotonic() - at > SILENT * self.told["interval"] + SLACK_S)

    @property
    def has_carrier(self) -> bool:
        request = struct.pack("16s16x", self.told["link"].encode())
        try:
            answer = fcntl.ioctl(self.socket, GET_FLAGS, request)
        except OSError:
            return False  # there is no such link any more
        return bool(struct.unpack_from("H", answer, 16)[0] & RUNNING)

    @property
    def is_heard(self) -> bool:
        return bool(self.heard) and not self._is_late(self.heard_at)

    @property
    def is_behind(self) -> bool:
        """Both have a document, and not the same."""
        return self.is_heard and self.heard.get("document") != self.told["document"]

    @property
    def other_role(self) -> str:
        return str(self.heard.get("role", "unknown")) if self.is_heard else "silent"

    # --- what follows from it

    def judge(self) -> None:
        self._watch_for_two()
        hold = self._judged()
        if hold != self.hold:
            if self.hold is not None:
                say(f"hold {self.hold} -> {hold}: {self.words()}")
            # In place: keepalived watches this very file. So few bytes go down in one write.
            with open(self.run / "hold", "w", encoding="ascii") as file:
                file.write(f"{hold}\n")
            self.hold = hold
        self.report()

    def _judged(self) -> int:
        now = time.monotonic()
        if self.split_at and now - self.split_at > SPLIT_S and not self.told["stronger"]:
            return FAULT
        if self.hold == FAULT and self.other_role == "primary" and self._is_late(self.advertised_at):
            return FAULT  # to come back would begin it anew
        if self.role == "primary":
            return FREE
        if self.heard and not self.has_carrier:
            return FAULT
        if self.other_role == "primary" and self.is_behind:
            return BEHIND
        return FREE

    def announce(self) -> None:
        """Tell the neighbours where the shared addresses are: gratuitous ARP (RFC 5227, 3), and RFC 4861, 7.2.6."""
        say("announces all addresses")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            for link, address in self.told["shared"]:
                with contextlib.suppress(OSError):
                    sock.bind((link, 0))
                    mac = sock.getsockname()[4]
                    sock.send(advertised(mac, address) if ":" in address else gratuitous(mac, address))

    def show_the_way(self) -> None:
        """Tell guests of IPv6 by which member they go out: they know a router by its link-local address (RFC 4861).

        By this one, now that it is the primary, and not by the other, in whose name that must be said, for it may be
        dead; or not by this one any more. All else dnsmasq tells them within seconds.
        """
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            for way in self.told.get("ways", ()):
                with contextlib.suppress(OSError):
                    sock.bind((way["link"], 0))
                    mac = sock.getsockname()[4]
                    if self.role == "primary":
                        sock.send(advertisement(mac, link_local(bytes.fromhex(way["other"])), 0, way["managed"]))
                    lifetime_s = way["lifetime"] if self.role == "primary" else 0
                    sock.send(advertisement(mac, link_local(mac), lifetime_s, way["managed"]))

    def _watch_for_two(self) -> None:
        if self.role == "primary" == self.other_role:
            if not self.split_at:
                self.split_at = time.monotonic()
                self.splits += 1
                say(f"both are the router; {self.told['peer' if not self.told['stronger'] else 'member']} stays")
        else:
            self.split_at = 0.0

    def words(self) -> str:
        other = self.told["peer"]
        if self.split_at:
            stays = self.told["member"] if self.told["stronger"] else other
            return f"this member and {other} are both primary: {stays} stays"
        if self.hold == FAULT and not self.has_carrier:
            return f"{self.role}: stands back while {self.told['link']}, where it meets {other}, has no carrier"
        if self.hold == FAULT:
            return f"{self.role}: stands back: {other} is primary, and VRRP did not tell; is protocol 112 let in?"
        if not self.is_heard:
            return f"{self.role}; {other} is silent: see to it, and to the link that the two meet on"
        if self.is_behind:
            return f"{self.role}; {other} is {self.other_role} and has another document: push it to both"
        return f"{self.role}; {other} is {self.other_role}"

    def report(self) -> None:
        words, now = self.words(), time.monotonic()
        if words == self.reported[0] and now - self.reported[1] < REPORT_S:
            return
        self.reported = words, now
        told = {
            "ok": not self.split_at and self.is_heard and not self.is_behind and self.role in ("primary", "backup"),
            "words": words,
            "role": self.role,
            "since": round(self.since, 3),
            "member": self.told["member"],
            "peer": {"member": self.told["peer"], "role": self.other_role, "same_document": not self.is_behind},
            "hold": self.hold,
            "splits": self.splits,
        }
        write(self.run / "report", json.dumps(told) + "\n")

    def _renew(self, lease: Json) -> None:
        """Ask our own server for each lease that the other gave, as its guest would."""
        try:
            lines = self.followed.leases(lease["network"])
        except OSError:
            return
        first, last = number(lease["first"]), number(lease["last"])
        asked = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, lease["link"].encode())
            for line in lines:
                words = line.split()  # until when, MAC, address, name, client's id
                with contextlib.suppress(OSError, ValueError, IndexError):
                    until, mac, address = int(words[0]), words[1], words[2]
                    if (until == 0 or until > time.time()) and first <= number(address) <= last:
                        sock.sendto(renewal(mac, address), (lease["server"], 67))
                        asked += 1
                        time.sleep(1 / RENEWALS_PER_S)
        say(f"{asked} leases of {lease['network']} are taken over")

    # --- all of it

    def run_on(self) -> None:
        waker, _kept_open = wake_by_signals()
        self.learn()
        due = looked = 0.0
        while True:
            now = time.monotonic()
            if now >= due:
                due = now + self.told["interval"]
                self._reopen_fifo()
                self.tell()
                if now - looked > REPORT_S:
                    looked = now
                    self.learn()
            self.judge()
            watched: list[Any] = [self.fifo, self.socket, self.vrrp, waker]
            ready, _, _ = select.select(watched, [], [], max(0.0, due - time.monotonic()))
            if waker in ready:
                waker.recv(64)
                self.reload()
            if self.fifo in ready:
                self.listen()
            if self.vrrp in ready:
                self.hear_vrrp()
            if self.socket in ready:
                self.hear()


def wake_by_signals() -> tuple[socket.socket, socket.socket]:
    """A socket that can be read after a SIGHUP, and its other end."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    signal.set_wakeup_fd(there.fileno())
    signal.signal(signal.SIGHUP, lambda *_: None)
    return here, there


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    Peer(arguments[0]).run_on()
    return 0
