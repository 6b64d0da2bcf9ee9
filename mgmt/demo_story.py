"""The story of the demo: one function a step, in order. Each does it for real, and tells in one line what was so.

A step raises NotSo where something is not as it should be; what it returns is what a person reads.
"""

from __future__ import annotations

import copy
import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mgmt.demo_stage import GATEWAY, OUTSIDE, ROUTER, Stage
from mgmt.hosts.guest import Guest, NoAnswer, Reply
from mgmt.push import Answer, Appliance

PUBLIC, WEB_ADDRESS, MAIL_ADDRESS = "203.0.113.2", "203.0.113.10", "203.0.113.20"
APP, DB = "10.1.2.10", "10.1.3.10"
ROUTER_HERE, METADATA = "10.1.1.1", "169.254.169.254"  # where the office's guests ask for metadata
CONFIRM_SECONDS = 2
HEAL_SECONDS = 10.0


class NotSo(Exception):
    """What the demo claims did not happen."""


@dataclass(frozen=True, slots=True)
class Step:
    """`name` is for machines, `doing` what a person reads while it goes on; `deed` does it and tells what was so."""

    name: str
    doing: str
    deed: Callable[[], str]


class Story:
    """The steps on one stage, and what one step hands to the next: the manager's connection and the generation."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.generation = 0
        self._appliance: Appliance | None = None

    def steps(self) -> Iterator[Step]:
        yield Step("stage", "namespaces and bridges", self.put_up)
        yield Step("router", f"the router, in {self.stage.where.words}", self.start_router)
        yield Step("push", "the document", self.push_document)
        yield Step("leases", "leases by DHCP", self.take_leases)
        yield Step("names", "names", self.resolve_each_other)
        yield Step("source-nat", "the way out", self.go_out)
        yield Step("forward", "the forwards", self.come_in_by_forwards)
        yield Step("static-nat", "static NAT", self.pass_static_nat)
        yield Step("dropped", "what is forbidden", self.try_what_is_forbidden)
        yield Step("patch", "one more forward", self.patch_forward)
        yield Step("balancer", "a balancer", self.balance)
        yield Step("tiers", "two tiers", self.open_tiers)
        yield Step("metadata", "metadata", self.tell_guests)
        yield Step("cut-off", "a push that cuts the manager off", self.cut_manager_off)
        yield Step("refused", "a document with an error", self.push_error)
        yield Step("healed", "damage by hand", self.damage_rules)

    @property
    def appliance(self) -> Appliance:
        if self._appliance is None:
            raise NotSo("there is no router")
        return self._appliance

    @property
    def _patience(self) -> float:
        """Seconds in which the router must have put something right."""
        return HEAL_SECONDS * self.stage.where.slower

    def guest(self, name: str) -> Guest:
        return self.stage.guests[name]

    # --- the stage

    def put_up(self) -> str:
        self.stage.put_up()
        return f"{len(self.stage.guests)} guests and an outside host, each a namespace on a bridge"

    def start_router(self) -> str:
        self._appliance = self.stage.start_router()
        return f"router {ROUTER} in {self.stage.where.words}: its agent answers by ssh on port 3922"

    # --- the document

    def push_document(self) -> str:
        answer = self.appliance.put(json.dumps(self.stage.document).encode())
        if answer.status == 202:  # it touches the manager's way in
            kept = self.appliance.confirm(answer.body["generation"])
            expect(kept.status == 200, f"confirm: {kept.status} {kept.body}")
        else:
            expect(answer.status == 200, f"push: {answer.status} {json.dumps(answer.body)[:500]}")
        self.generation = int(self.stage.document["generation"])
        steps = answer.body["steps"]
        return f"docs/examples/router.json pushed: {steps} steps, verified in the kernel, confirmed"

    def take_leases(self) -> str:
        leases = self._lease(*(host["name"] for host in self.stage.config["hosts"]))
        return "by DHCP: " + ", ".join(f"{name} {address}" for name, address in leases.items())

    def _lease(self, *names: str) -> dict[str, str]:
        """These guests ask by DHCP at once. Their addresses, which must be the document's."""
        with ThreadPoolExecutor() as pool:
            leases = dict(zip(names, pool.map(self.stage.take_lease, names), strict=True))
        for host in self.stage.whole["hosts"]:
            got = leases.get(host["name"], host["address"])
            expect(got == host["address"], f"{host['name']} got {got}")
        return leases

    def resolve_each_other(self) -> str:
        for asker, name, wanted in (
            ("web", "mail", "10.1.1.20"),
            ("mail", "desk", "10.1.1.30"),
            ("desk", "intranet.office.example", "10.1.1.10"),
        ):
            found = self.guest(asker).resolve(name)
            expect(found == (wanted,), f"{asker} resolves {name} to {found or 'nothing'}")
        names = self.guest("desk").resolve("10.1.1.10", "PTR")
        expect("web.office.example" in names, f"10.1.1.10 is called {names or 'nothing'}")
        return "guests resolve each other, forward and reverse, and intranet.office.example"

    # --- packets

    def go_out(self) -> str:
        reply = met(self.guest("desk").ask(OUTSIDE, 80), "outside")
        expect(reply.seen == PUBLIC, f"the outside host sees {reply.seen}")
        expect(self.guest("web").pings(OUTSIDE), "ping from web to the outside host is not answered")
        return f"desk reaches {OUTSIDE}, which sees {reply.seen}: source NAT"

    def come_in_by_forwards(self) -> str:
        outside = self.stage.outside
        met(outside.ask(WEB_ADDRESS, 80, source=OUTSIDE), "web")
        met(outside.ask(WEB_ADDRESS, 5004, "udp", source=OUTSIDE), "desk")
        met(outside.ask(WEB_ADDRESS, 2222, source=OUTSIDE), "web")
        return f"outside reaches {WEB_ADDRESS}: tcp 80 is web, udp 5004 desk, tcp 2222 web by source"

    def pass_static_nat(self) -> str:
        met(self.stage.outside.ask(MAIL_ADDRESS, 25, source=OUTSIDE), "mail")
        reply = met(self.guest("mail").ask(OUTSIDE, 25), "outside")
        expect(reply.seen == MAIL_ADDRESS, f"the outside host sees mail as {reply.seen}")
        return f"{MAIL_ADDRESS} is mail, in and out: static NAT"

    def try_what_is_forbidden(self) -> str:
        outside = self.stage.outside
        self._expect_silence(
            lambda: outside.ask(WEB_ADDRESS, 22, source=OUTSIDE, seconds=1.0),
            lambda: outside.ask(WEB_ADDRESS, 2222, source=GATEWAY, seconds=1.0),
            lambda: outside.ask("10.1.1.10", 8080, source=OUTSIDE, seconds=1.0),
            lambda: self.guest("web").ask(OUTSIDE, 25, seconds=1.0),
        )
        return "dropped: a closed port, a stranger's ssh, a guest's own address, mail not by mail"

    # --- changes

    def patch_forward(self) -> str:
        forward = {
            "id": "desk-chat", "protocol": "tcp", "address": WEB_ADDRESS, "ports": {"first": 7000, "last": 7000},
            "target": "10.1.1.30",
        }  # fmt: skip
        allowed = {"id": "chat", "address": WEB_ADDRESS, "protocol": "tcp", "ports": {"first": 7000, "last": 7000}}
        operations = [
            {"op": "put", "collection": "forwards", "object": forward},
            {"op": "put", "collection": "firewall", "object": allowed},
        ]
        answer = self._patch(operations)
        met(self.stage.outside.ask(WEB_ADDRESS, 7000, source=OUTSIDE), "desk")
        return f"one more forward patched in, in {answer.seconds * 1000:.0f} ms: tcp 7000 is desk"

    def _patch(self, operations: list[dict[str, Any]]) -> Answer:
        change = {**self._envelope(), "base": self.generation, "operations": operations}
        answer = self.appliance.patch(json.dumps(change).encode())
        expect(answer.status == 200, f"patch: {answer.status} {answer.body}")
        self.generation += 1
        return answer

    def _put(self, *places: str) -> list[dict[str, Any]]:
        """The operations that put these objects of docs/examples/demo.json, each named as collection/id."""
        found = []
        for collection, _, ident in (place.partition("/") for place in places):
            one = next(o for o in self.stage.whole[collection] if o["id"] == ident)
            found.append({"op": "put", "collection": collection, "object": one})
        return found

    def _expect_silence(self, *tries: Callable[[], Reply]) -> None:
        """None of these may be answered; all are tried at once."""
        with ThreadPoolExecutor() as pool:
            for one in [pool.submit(attempt) for attempt in tries]:
                try:
                    raise NotSo(f"an answer came from {one.result().name}, where none should")
                except NoAnswer:
                    pass

    def balance(self) -> str:
        self._patch(self._put("balancers/shop", "firewall/shop"))
        outside, answered = self.stage.outside, set[str]()
        deadline = time.monotonic() + self._patience
        while answered != {"web", "mail"}:
            expect(time.monotonic() < deadline, f"of web and mail answered {sorted(answered) or 'neither'}")
            with suppress(OSError, NoAnswer):  # it has just started
                answered.add(outside.ask(WEB_ADDRESS, 8000, source=OUTSIDE).name)
        return f"a balancer at {WEB_ADDRESS}:8000: web and mail answer by turns"

    def open_tiers(self) -> str:
        self.stage.plug_in_tiers()
        interfaces, networks = ("interfaces/app", "interfaces/data"), ("networks/app", "networks/data")
        operations = self._put(*interfaces, *networks, "acls/app", "acls/data", "hosts/vm-app", "hosts/vm-db")
        deadline = time.monotonic() + self._patience
        while True:
            try:
                self._patch(operations)
                break
            except NotSo:  # a machine takes a moment to see what was plugged in
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        self._lease("app", "db")
        app, db, desk = (self.guest(name) for name in ("app", "db", "desk"))
        met(app.ask(DB, 5432), "db")
        expect(met(app.ask(OUTSIDE, 80), "outside").seen == PUBLIC, "app is seen by another address")
        self._expect_silence(
            lambda: app.ask(DB, 22, seconds=1.0),
            lambda: db.ask(APP, 8080, seconds=1.0),
            lambda: db.ask(OUTSIDE, 80, seconds=1.0),
            lambda: desk.ask(DB, 5432, seconds=1.0),
        )
        return "two tiers plugged in: app reaches db by tcp 5432 alone, nobody else does; db no one"

    def tell_guests(self) -> str:
        self._patch(self._put("networks/office", "hosts/vm-web"))
        web, told = self.guest("web"), self.stage.whole["hosts"][0]["metadata"]
        deadline = time.monotonic() + self._patience
        while (found := web.fetch(ROUTER_HERE, "/latest/user-data"))[0] != 200:
            expect(time.monotonic() < deadline, f"user data: {found}")
            time.sleep(0.02 * self.stage.where.slower)
        expect(found[1] == b64decode(told["user_data"]), f"the user data is {found[1]!r:.80}")
        keys = web.fetch(METADATA, "/latest/meta-data/public-keys")
        expect(keys == (200, told["ssh_keys"][0].encode()), f"the keys are {keys}")
        words = [self._password(web, request) for request in ("send_my_password", "saved_password", "send_my_password")]
        expect(words == [told["password"]["value"], "saved_password", "saved_password"], "the password is another")
        others = self.guest("mail").fetch(ROUTER_HERE, "/latest/user-data", {"X-Forwarded-For": "10.1.1.10"})
        expect(others[0] == 404, f"mail is told {others}")
        return "web fetches its user data, keys and password, the password once; mail nothing of it"

    def _password(self, guest: Guest, request: str) -> str:
        return guest.fetch(ROUTER_HERE, "/", {"DomU_Request": request}, port=8080)[1].decode()

    def cut_manager_off(self) -> str:
        """The control interface gets another address: nobody can confirm there, and the deadline passes."""
        document = {**self._envelope(), "confirm": {"seconds": CONFIRM_SECONDS}, "config": self._config()}
        control = next(i for i in document["config"]["interfaces"] if i["use"] == "control")
        control["addresses"] = ["169.254.250.2/20"]
        with ThreadPoolExecutor(1) as pool, self.stage.connect() as pusher:
            pushed = pool.submit(pusher.put, json.dumps(document).encode())
            away = self._wait_for_return(pushed)
        self.generation += 1  # the number is used up
        record = self.appliance.generations(self.generation).body
        expect(record["status"] == "undone", f"generation {self.generation} is {record['status']}")
        expect("not confirmed" in record["why"], record["why"])
        met(self.stage.outside.ask(WEB_ADDRESS, 80, source=OUTSIDE), "web")
        return f"a push that cut the manager off: not confirmed, undone by itself after {away:.1f} s"

    def _wait_for_return(self, pushed: Future[Answer]) -> float:
        """The seconds that nobody could connect. It must have been so, and end."""
        started, gone_at = time.monotonic(), 0.0
        while time.monotonic() - started < CONFIRM_SECONDS + self._patience:
            if not self.stage.answers_on_ssh():
                gone_at = gone_at or time.monotonic()
            elif gone_at:
                return time.monotonic() - gone_at
            elif pushed.done() and pushed.result().status not in (200, 202):
                raise NotSo(f"the push was answered {pushed.result().status}: {pushed.result().body}")
            time.sleep(0.05)
        raise NotSo("the router did not come back by itself" if gone_at else "the manager was never cut off")

    def push_error(self) -> str:
        document = {**self._envelope(), "config": self._config()}
        document["config"]["forwards"][0]["target"] = "10.9.9.9"
        answer = self.appliance.put(json.dumps(document).encode())
        expect(answer.status == 422, f"it was answered {answer.status}")
        problem = answer.body["problems"][0]
        place = "config.forwards[web-http].target"
        expect(problem["path"] == place, f"the place told is {problem['path']}")
        met(self.stage.outside.ask(WEB_ADDRESS, 80, source=OUTSIDE), "web")
        return f"a document with an error: refused at {place}"

    def damage_rules(self) -> str:
        before = len(self.appliance.state().body["drift"])
        self.stage.in_router(
            "nft", "delete", "element", "inet", "narthex", "m_forward", f"{{ {WEB_ADDRESS} . tcp . 80 }}"
        )
        started = time.monotonic()
        while not self._is_healed(before):
            if time.monotonic() - started > self._patience:
                raise NotSo(f"not healed after {self._patience:.0f} s: {self.appliance.state().body['drift']}")
            time.sleep(0.02)
        met(self.stage.outside.ask(WEB_ADDRESS, 80, source=OUTSIDE), "web")
        drift = self.appliance.state().body["drift"][-1]
        objects = {step["owner"] for step in drift["steps"]}
        expect("web-http" in objects, f"the drift names {objects}")
        return "forward web-http deleted from the kernel by hand: found, named and healed"

    def _is_healed(self, before: int) -> bool:
        drift = self.appliance.state().body["drift"]
        return len(drift) > before and bool(drift[-1]["healed"])

    def _envelope(self) -> dict[str, Any]:
        return {"version": 1, "role": "router", "generation": self.generation + 1}

    def _config(self) -> dict[str, Any]:
        return copy.deepcopy(self.appliance.config().body["config"])


def expect(is_so: bool, words: str) -> None:
    """Raises NotSo with `words` where it is not so."""
    if not is_so:
        raise NotSo(words)


def met(reply: Reply, name: str) -> Reply:
    """The reply, which must be of `name`."""
    expect(reply.name == name, f"{reply.name} answered in place of {name}")
    return reply
