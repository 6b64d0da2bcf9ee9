"""Questions about packets: what is left out is filled in sensibly, what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.document import Document, validate_json
from appliance.fake import facts
from appliance.state import Facts, State
from router.compile import compile
from router.config import Config
from router.question import answer

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "router.json"


@pytest.fixture(scope="module")
def router() -> tuple[State, Facts]:
    document = validate_json(Document[Config], EXAMPLE.read_bytes())
    known = facts(*(i.mac for i in document.config.interfaces))
    return compile(document.config, known), known


def ask(router: tuple[State, Facts], **query: str) -> dict[str, Any]:
    return answer(*router, {word.removesuffix("_"): value for word, value in query.items()})


def test_a_forward_is_named(router: tuple[State, Facts]) -> None:
    told = ask(router, in_="public", dst="203.0.113.10", dport="80")
    assert told["outcome"]["verdict"] == "forwarded"
    assert (told["outcome"]["destination"], told["outcome"]["destination_port"]) == ("10.1.1.10", 8080)
    assert "web-http" in told["outcome"]["owners"]
    assert any(step["owner"] == "web-http" for step in told["steps"])


def test_a_closed_port_is_dropped(router: tuple[State, Facts]) -> None:
    assert ask(router, in_="public", dst="203.0.113.10", dport="81")["outcome"]["verdict"] == "dropped"


def test_without_a_port_it_is_a_ping_from_a_neighbour(router: tuple[State, Facts]) -> None:
    packet = ask(router, in_="guest", dst="198.51.100.10")["packet"]
    assert (packet["protocol"], packet["icmp_type"]) == ("icmp", 8)
    assert packet["source"].startswith("10.1.1.")
    assert packet["source"] != "10.1.1.1"


def test_without_an_interface_it_comes_from_where_its_source_is(router: tuple[State, Facts]) -> None:
    packet = ask(router, src="10.1.1.77", dst="198.51.100.10")["packet"]
    assert packet["in_interface"] == "guest"


def test_without_an_interface_it_is_our_own(router: tuple[State, Facts]) -> None:
    told = ask(router, dst="198.51.100.10", dport="53", proto="udp")
    assert told["outcome"]["source"] == "203.0.113.2"


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({}, "dst"),
        ({"dst": "here"}, "dst"),
        ({"dst": "2001:db8::1"}, "no way"),
        ({"dst": "2001:db8::1", "src": "192.0.2.1"}, "two families"),
        ({"dst": "192.0.2.1", "src": "1.2.3"}, "src"),
        ({"dst": "192.0.2.1", "dport": "65536"}, "dport"),
        ({"dst": "192.0.2.1", "proto": "ipx"}, "proto"),
        ({"dst": "192.0.2.1", "icmp_type": "-1"}, "icmp_type"),
        ({"dst": "192.0.2.1", "proto": "tcp"}, "dport"),
        ({"dst": "192.0.2.1", "port": "1"}, "port"),
        ({"dst": "192.0.2.1", "src": "192.0.2.2", "in": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_wrong_is_named(router: tuple[State, Facts], query: dict[str, str], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        answer(*router, query)


def test_before_the_first_document_there_is_nothing_to_ask() -> None:
    with pytest.raises(ValueError, match="no document yet"):
        answer(State(), facts(), {"dst": "192.0.2.1"})
