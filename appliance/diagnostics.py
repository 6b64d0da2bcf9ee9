"""Questions a person may have the appliance ask: ping, arping, traceroute. Never a free command."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from appliance.document import DocumentError, Model, validate
from appliance.machine import Host, HostError
from appliance.values import Address, Identifier


class DiagnosticsError(Exception):
    """A question that is not understood, or whose tool is missing."""


class Question(Model):
    """What to ask of `address`; `count` packets; `link` for arping."""

    kind: Literal["ping", "arping", "traceroute"]
    address: Address
    count: Annotated[int, Field(ge=1, le=10)] = 3
    link: Identifier | None = None


def diagnose(host: Host, raw: Any) -> dict[str, Any]:
    """Ask, and give the tool's own words: {argv, status, output}. Raises DiagnosticsError."""
    try:
        question = validate(Question, raw)
    except DocumentError as error:
        raise DiagnosticsError(str(error)) from None
    count = str(question.count)
    argv: tuple[str, ...]
    if question.kind == "ping":
        argv = ("ping", "-n", "-c", count, "-w", str(question.count + 2), question.address)
    elif question.kind == "arping":
        if question.link is None:
            raise DiagnosticsError("arping needs a link: the interface to ask on")
        if ":" in question.address:
            raise DiagnosticsError("arping asks for IPv4 addresses; a neighbour of IPv6 answers ping")
        argv = ("arping", "-c", count, "-w", str(question.count + 2), "-I", question.link, question.address)
    else:
        argv = ("traceroute", "-n", "-w", "1", "-q", "1", "-m", "20", question.address)
    try:
        status, out, err = host.run(argv, b"", 25.0)
    except HostError as error:
        raise DiagnosticsError(str(error)) from None
    return {"argv": argv, "status": status, "output": (out + err).decode(errors="replace")[:20_000]}
