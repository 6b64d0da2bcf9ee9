"""Questions a person may have the appliance ask: ping, traceroute, arping, DNS, a capture. Never a free command.

Every word of a command line is made here, from fields with narrow alphabets: a capture's filter too. All is bounded: in
packets, bytes and seconds. A link is named as the machine has it (eth1), or by the id of the object that it came from.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from appliance.document import Model
from appliance.machine import Host, HostError
from appliance.state import State
from appliance.values import Address, Cidr, Hostname, Identifier, Port

LONGEST_S = 30.0
CAPTURED_BYTES = 4 << 20  # packets times bytes of each, at most

Count = Annotated[int, Field(ge=1, le=10)]


class DiagnosticsError(Exception):
    """A question that is not understood, or whose tool is missing."""


class Ping(Model):
    """`ping6` is for who expects it: the address says the family. `source`: an address of our own to ask from."""

    kind: Literal["ping", "ping6"]
    address: Address
    count: Count = 3
    source: Address | None = None

    @model_validator(mode="after")
    def alike(self) -> Ping:
        if self.kind == "ping6" and ":" not in self.address:
            raise ValueError(f"{self.address} is an IPv4 address; ask by ping")
        if self.source and (":" in self.source) is not (":" in self.address):
            raise ValueError("source and address are of two families")
        return self


class Traceroute(Model):
    kind: Literal["traceroute", "traceroute6"]
    address: Address
    hops: Annotated[int, Field(ge=1, le=30)] = 20
    count: Count = 3  # as every question may have: it is of no use here


class Arping(Model):
    kind: Literal["arping"]
    address: Address
    link: Identifier | None = None
    count: Count = 3

    @model_validator(mode="after")
    def placed(self) -> Arping:
        if self.link is None:
            raise ValueError("arping needs a link: the interface to ask on")
        if ":" in self.address:
            raise ValueError(f"{self.address} is an IPv6 address, which has no ARP; ask by ping6")
        return self


class Lookup(Model):
    """A question to the name server `server`: one of our own addresses, or any other."""

    kind: Literal["dns"]
    name: Hostname
    server: Address
    type: Literal["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"] = "A"
    tcp: bool = False


class Capture(Model):
    """What passes on `link`, as pcap: at most `packets`, `bytes` of each, for `seconds`. What is named must fit, all of
    it: `protocol`, one of the two `hosts` (a network, too) each, `port`."""

    kind: Literal["capture"]
    link: Identifier
    packets: Annotated[int, Field(ge=1, le=10_000)] = 100
    bytes: Annotated[int, Field(ge=64, le=65535)] = 256
    seconds: Annotated[int, Field(ge=1, le=20)] = 5
    protocol: Literal["ip", "ip6", "arp", "icmp", "icmp6", "tcp", "udp", "esp", "vrrp"] | None = None
    hosts: Annotated[tuple[Address | Cidr, ...], Field(max_length=2)] = ()
    port: Port | None = None

    @model_validator(mode="after")
    def bounded(self) -> Capture:
        if self.packets * self.bytes > CAPTURED_BYTES:
            raise ValueError(f"packets times bytes is more than {CAPTURED_BYTES >> 20} MiB; ask for less of either")
        if self.port is not None and self.protocol not in (None, "ip", "ip6", "tcp", "udp"):
            raise ValueError(f"{self.protocol} has no ports; leave out the one or the other")
        return self

    def words(self) -> list[str]:
        """As pcap-filter(7) has it."""
        found: list[str] = [self.protocol] if self.protocol else []
        found += [f"{'net' if '/' in host else 'host'} {host}" for host in self.hosts]
        found += [f"port {self.port}"] if self.port else []
        return " and ".join(found).split()


Question = Ping | Traceroute | Arping | Lookup | Capture
_question: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="kind")])


def diagnose(host: Host, raw: Any, state: State | None = None) -> dict[str, Any]:
    """Ask, and give the tool's own words: {argv, status, output}, and of a capture `pcap` in base64.

    Raises DiagnosticsError.
    """
    try:
        question = _question.validate_python(raw, strict=False)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the question'}: {e['msg']}" for e in error.errors()[:8])
        raise DiagnosticsError(told) from None
    stdin, seconds = b"", LONGEST_S
    if isinstance(question, Ping):
        source = ("-I", question.source) if question.source else ()
        count = str(question.count)
        argv: tuple[str, ...] = ("ping", "-n", "-c", count, "-w", str(question.count + 2), *source, question.address)
    elif isinstance(question, Traceroute):
        argv = ("traceroute", "-n", "-w", "1", "-q", "1", "-m", str(question.hops), question.address)
    elif isinstance(question, Arping):
        link, count = _link(question.link or "", state), str(question.count)
        argv = ("arping", "-c", count, "-w", str(question.count + 2), "-I", link, question.address)
    elif isinstance(question, Lookup):
        argv, stdin = (sys.executable, "-m", "appliance.lookup"), json.dumps(question.model_dump()).encode()
    else:
        link, most = _link(question.link, state), str(question.packets)
        # Ended by a signal that lets it write what it has; it needs no account of its own to write to us.
        bounds = ("timeout", "-s", "INT", str(question.seconds), "tcpdump", "-Z", "root", "-n", "-p", "-U", "-w", "-")
        argv = (*bounds, "-i", link, "-c", most, "-s", str(question.bytes), *question.words())
    try:
        status, out, err = host.run(argv, stdin, seconds)
    except HostError as error:
        raise DiagnosticsError(str(error)) from None
    if isinstance(question, Capture):
        pcap = b64encode(out[: 2 * CAPTURED_BYTES]).decode()
        return {"argv": argv, "status": 0 if status == 124 else status, "output": _text(err), "pcap": pcap}
    return {"argv": argv, "status": status, "output": _text(out + err)}


def _link(name: str, state: State | None) -> str:
    """The machine's name of a link that is named by its object's id."""
    return next((link.name for link in (state.links if state else ()) if link.owner == name), name)


def _text(said: bytes) -> str:
    return said.decode(errors="replace")[:20_000]
