"""The checks of a State, asked: a program of its own (`python -m appliance.checkup`), run by host.py, gone when done.

Apart, so that what it needs (dnspython, threads) is not in the agent's memory, and whatever hangs or dies here holds up
nobody. It reads one JSON list of checks (state.py, Check) and writes one of [is it so, what was seen], in their order,
null for what there was no time for. All are asked at once, each for at most ASK_S; many name servers, MOST at a time.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

from appliance import dhcpask, probe, probe6

ASK_S = 2.0  # of one question
ALL_S = 15.0  # of all of them; whose turn has not come by then is not asked
MOST = 24
SHAKEN_S = 240.0  # who keeps a session alive shakes hands every two minutes (REKEY_AFTER_TIME), and tries for a while

Ask = dict[str, str]
Told = tuple[bool, str]


def answers(checks: Sequence[Ask]) -> list[Told | None]:
    """What each check comes to, in their order; None where there was no time."""
    found: list[Told | None] = [None] * len(checks)
    by_kind: dict[str, list[int]] = {}
    elsewhere = {here: not _has(here) for here in {check["here"] for check in checks} if here}
    for number, check in enumerate(checks):
        if elsewhere.get(check["here"]):
            found[number] = True, f"it is asked where {check['here']} is, which is not here now"
        else:
            by_kind.setdefault(check["kind"], []).append(number)
    pool = ThreadPoolExecutor(MOST)
    asked: list[tuple[list[int], Future[list[Told]]]] = []
    for kind, numbers in by_kind.items():
        # Those that one socket can ask together are one question.
        together, ask = _KINDS[kind]
        for some in [numbers] if together else [[number] for number in numbers]:
            asked.append((some, pool.submit(ask, [checks[number] for number in some])))
    wait([future for _, future in asked], ALL_S)
    for numbers, future in asked:
        if future.done():
            for number, told in zip(numbers, _outcome(future, len(numbers)), strict=True):
                found[number] = told
    pool.shutdown(wait=False, cancel_futures=True)
    return found


def _has(address: str) -> bool:
    """Is this IPv4 address one of the machine's?"""
    with open("/proc/net/fib_trie", encoding="ascii") as file:
        _, found, rest = file.read().partition(f"|-- {address}\n")
    return bool(found) and "/32 host LOCAL" in rest[:60]


def _outcome(future: Future[list[Told]], count: int) -> list[Told]:
    error = future.exception()
    if error is not None:
        return [(False, f"it cannot be asked: {type(error).__name__}: {error}")] * count
    return future.result()


# --- each kind


def _gateways(checks: Sequence[Ask]) -> list[Told]:
    v4 = [c["target"] for c in checks if ":" not in c["target"]]
    v6 = {c["target"]: c["link"] for c in checks if ":" in c["target"]}
    found = {e.target: (e.ok, e.words) for e in (probe.probe_gateways(v4, ASK_S) if v4 else ())}
    found |= probe6.probe_neighbours(v6, ASK_S) if v6 else {}
    return [found[c["target"]] for c in checks]


def _dns(checks: Sequence[Ask]) -> list[Told]:
    import dns.exception
    import dns.message
    import dns.query
    import dns.rcode
    import dns.rdatatype

    (check,) = checks
    server, name, expect = check["target"], check["name"], check["expect"]
    kind = "NS" if name == "." else "AAAA" if ":" in expect else "A"
    end, reason = time.monotonic() + ASK_S, f"no answer within {ASK_S:g} s"
    while (left := end - time.monotonic()) > 0:
        try:
            answer = dns.query.udp(dns.message.make_query(name, kind), server, timeout=min(left, ASK_S / 2))
        except dns.exception.Timeout:
            continue
        except (dns.exception.DNSException, OSError) as error:
            reason = str(error) or type(error).__name__
            time.sleep(max(0.0, min(0.2, end - time.monotonic())))
            continue
        records = sorted(str(record) for group in answer.answer for record in group)
        said = ", ".join(records[:4]) or dns.rcode.to_text(answer.rcode())
        if expect and expect not in records:
            return [(False, f"{server} answers {said} for {name}, not {expect}")]
        # Without an address to expect, any answer shows that it is there and asks on.
        is_well = bool(expect) or answer.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
        return [(is_well, f"{server} answers {said if expect else dns.rcode.to_text(answer.rcode())} for {name}")]
    return [(False, f"{server} does not answer for {name}: {reason}")]


def _dhcp(checks: Sequence[Ask]) -> list[Told]:
    (check,) = checks
    return [dhcpask.offered(check["link"], check["name"], check["expect"], ASK_S)]


def _tcp(checks: Sequence[Ask]) -> list[Told]:
    """All at once: who has taken the connection is let go of with a reset, so that nothing lingers here."""
    found: dict[int, Told] = {}
    with ExitStack() as stack:
        poll, waiting = select.poll(), dict[int, tuple[int, socket.socket]]()
        for number, check in enumerate(checks):
            v6 = ":" in check["target"]
            family = socket.AF_INET6 if v6 else socket.AF_INET
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            error = sock.connect_ex((check["target"], int(check["name"])))
            if error not in (0, errno.EINPROGRESS):
                found[number] = _connected(check, error)
                continue
            waiting[sock.fileno()] = number, sock
            poll.register(sock, select.POLLOUT)
        end = time.monotonic() + ASK_S
        while waiting and (left := end - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000):
                number, sock = waiting.pop(descriptor)
                poll.unregister(descriptor)
                found[number] = _connected(checks[number], sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    late = errno.ETIMEDOUT
    return [found.get(number) or _connected(check, late) for number, check in enumerate(checks)]


def _connected(check: Ask, error: int) -> Told:
    where = f"{check['target']} port {check['name']}"
    if error == errno.ETIMEDOUT:
        return False, f"{where} does not answer within {ASK_S:g} s"
    if error == errno.ECONNREFUSED:
        return False, f"{where} refuses: the machine is there, and nobody listens"
    return (False, f"{where}: {os.strerror(error)}") if error else (True, f"{where} takes connections")


def _report(checks: Sequence[Ask]) -> list[Told]:
    (check,) = checks
    path, seconds = check["target"], float(check["name"] or 0)
    try:
        age = time.time() - os.stat(path).st_mtime
        with open(path, encoding="utf-8") as file:
            told = json.loads(file.read(65536))
        ok, words = bool(told["ok"]), str(told["words"])[:500]
    except OSError as error:
        return [(False, f"{path}: {error.strerror}: who should write it does not run, or has not yet")]
    except (ValueError, KeyError, TypeError):
        return [(False, f"{path} is not a report")]
    if seconds and age > seconds:
        return [(False, f"{path} is {age:.0f} s old; it said: {words}")]
    return [(ok, words)]


def _bgp(checks: Sequence[Ask]) -> list[Told]:
    """FRR's own words on each session (show bgp neighbors json)."""
    try:
        argv = ("vtysh", "-c", "show bgp neighbors json")
        done = subprocess.run(argv, capture_output=True, timeout=ASK_S * 2, check=False)
        peers: dict[str, Any] = json.loads(done.stdout or b"{}")
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return [(False, f"bgpd does not answer: {error}")] * len(checks)
    if not peers:
        words = (done.stderr or done.stdout).decode(errors="replace").strip() or "it knows of no peer"
        return [(False, f"bgpd does not answer: {words[:300]}")] * len(checks)
    return [_session(check["target"], peers.get(check["target"]) or {}) for check in checks]


def _session(peer: str, told: dict[str, Any]) -> Told:
    state = str(told.get("bgpState", "not known to bgpd"))
    if state != "Established":
        why = str(told.get("lastResetDueTo") or told.get("lastNotificationReason") or "")
        return False, f"the session with {peer} is {state}" + (f": {why}" if why else "")
    families = told.get("addressFamilyInfo", {})
    counts = [f"{name}: {f.get('acceptedPrefixCounter', 0)} prefixes taken" for name, f in families.items()]
    return True, f"the session with {peer} stands; {', '.join(counts)}"


def _wireguard(checks: Sequence[Ask]) -> list[Told]:
    """By the handshakes that the kernel remembers; nothing is sent."""
    from appliance.wireguard import WireguardLinks

    counted = WireguardLinks().counters(tuple({check["link"] for check in checks}))
    return [_shaken(check["target"], counted.get((check["link"], check["target"]))) for check in checks]


def _shaken(key: str, told: dict[str, int | str] | None) -> Told:
    if told is None:
        return False, f"the kernel knows no peer {key}"
    if not told["handshake"]:
        return False, f"peer {key} has never shaken hands"
    age = time.time() - int(told["handshake"])
    return age <= SHAKEN_S, f"peer {key} shook hands {age:.0f} s ago, at {told['endpoint'] or 'nowhere'}"


def _ipsec(checks: Sequence[Ask]) -> list[Told]:
    """Those of one daemon are one question."""
    from appliance.charon import CharonError, sessions

    found: dict[str, dict[str, str] | str] = {}
    for path in {check["target"] for check in checks}:
        try:
            found[path] = sessions(path)
        except CharonError as error:
            found[path] = str(error)
    return [_tunnel(check["name"], found[check["target"]]) for check in checks]


def _tunnel(name: str, there: dict[str, str] | str) -> Told:
    if isinstance(there, str):
        return False, there
    words = there.get(name, "the peer does not answer, or does not agree")
    return words.startswith("up"), words


_KINDS: dict[str, tuple[bool, Callable[[Sequence[Ask]], list[Told]]]] = {
    "gateway": (True, _gateways),
    "dns": (False, _dns),
    "dhcp": (False, _dhcp),
    "tcp": (True, _tcp),
    "report": (False, _report),
    "bgp": (True, _bgp),
    "wireguard": (True, _wireguard),
    "ipsec": (True, _ipsec),
}


def main() -> int:
    print(json.dumps(answers(json.load(sys.stdin))), flush=True)
    os._exit(0)  # a question that hangs is not waited for


if __name__ == "__main__":
    sys.exit(main())
