"""GET /v1/flows: live flows with the object of the document that allowed each, a page at a time.

    ?guest=vm-7&object=web-https&protocol=tcp&left_over=1&most=100&after=12345

`guest` is a guest's id or an address at either end, `object` one that allowed the flow, `left_over` those that no rule
of today would allow. A page has at most `most` flows, by the kernel's ids; `next` is what to ask for `after`, null at
the end: a flow that begins between two pages may be missed, none is told twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.state import LiveFlow

MOST, UNSAID = 10_000, 1000
_FIELDS = ("guest", "object", "protocol", "left_over", "most", "after")

# (what is wanted, how many at most, above which id) -> flows
Listing = Callable[[Callable[[LiveFlow], bool], int, int], Sequence[LiveFlow]]
Explain = Callable[[Sequence[LiveFlow]], Sequence[Any]]  # what the role says of them: roles.py


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: checked."""

    guest: str
    object: str
    protocol: str
    left_over: bool
    most: int
    after: int


def read(query: Mapping[str, str]) -> Question:
    """The question. Raises ValueError that says what is wrong with it."""
    if unknown := sorted(set(query) - set(_FIELDS)):
        raise ValueError(f"there is no {', '.join(unknown)} to ask with; there are: {', '.join(_FIELDS)}")
    most, after = _number(query, "most", UNSAID, MOST), _number(query, "after", 0, (1 << 32) - 1)
    if not most:
        raise ValueError("most: say how many, 1 at least")
    guest, wanted, protocol = (query.get(name, "") for name in ("guest", "object", "protocol"))
    return Question(guest, wanted, protocol, query.get("left_over", "0") not in ("", "0"), most, after)


def _number(query: Mapping[str, str], name: str, unsaid: int, most: int) -> int:
    text = query.get(name, str(unsaid))
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise ValueError(f"{name}: {text!r} is not a number from 0 to {most}")
    return int(text)


def page(asked: Question, ends: Collection[str], listing: Listing, explain: Explain, now: float) -> dict[str, Any]:
    """The answer; `ends` are the addresses of the guest that is asked for. A page that is sieved by `object` or
    `left_over` has less than it could."""

    def wanted(flow: LiveFlow) -> bool:
        if asked.protocol and flow.protocol != asked.protocol:
            return False
        return not asked.guest or any(end in ends for end in (flow.source, flow.reply_source, flow.destination))

    flows = listing(wanted, asked.most, asked.after)
    told = [
        _told(flow, found, now)
        for flow, found in zip(flows, explain(flows), strict=True)
        if (not asked.object or asked.object in found.allowed_by) and (not asked.left_over or found.left_over)
    ]
    return {"flows": told, "next": flows[-1].id if len(flows) == asked.most else None}


def _told(flow: LiveFlow, found: Any, now: float) -> dict[str, Any]:
    translated = {
        "to": flow.reply_source, "to_port": flow.reply_source_port,
        "from": flow.reply_destination, "from_port": flow.reply_destination_port,
    }  # fmt: skip
    return {
        "id": flow.id,
        "protocol": flow.protocol,
        "source": flow.source,
        "source_port": flow.source_port,
        "destination": flow.destination,
        "destination_port": flow.destination_port,
        "translated": translated if _is_translated(flow) else None,
        "came_by": found.came_by,
        "allowed_by": list(found.allowed_by),
        "why": found.why,
        "left_over": found.left_over,
        "mark": flow.mark,
        "state": flow.state,
        "expires_s": flow.expires_s,
        "age_s": round(now - flow.began, 1) if flow.began else None,
        "sent": _counted(flow.sent),
        "received": _counted(flow.received),
    }


def _is_translated(flow: LiveFlow) -> bool:
    went = flow.source, flow.source_port, flow.destination, flow.destination_port
    return went != (flow.reply_destination, flow.reply_destination_port, flow.reply_source, flow.reply_source_port)


def _counted(counted: tuple[int, int] | None) -> dict[str, int] | None:
    return None if counted is None else {"bytes": counted[0], "packets": counted[1]}
