"""IPsec with the kernel's ESP and XFRM interfaces, against strongSwans that were set up by hand.

`near` stands in a namespace of the tests' host, and its ESP is its own (kernel-libipsec, in UDP): another one than the
router's kernel. The other far ends are in a namespace of the router's own machine, with the kernel's ESP, plain.
"""

from __future__ import annotations

import socket
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bed import wait_for
from tests.certificates import Authority
from tests.netns.calls import echo, tcp, udp
from tests.netns.ike import PLUGINS, Daemon
from tests.netns.stage import DB, LEFT, NEAR, WEB, Json, Stage, office, put, remove, span
from tests.netns.test_ipsec import CLIENT, FAR

BEYOND, FURTHER = "10.9.0.1", "10.10.0.1"
LEGACY = "10.11.0.1"


def site(ident: str = "paris", **more: Any) -> Json:
    return {
        "_": "ipsec_sites", "id": ident, "address": LEFT, "peer": NEAR, "networks": ["10.1.1.0/24"],
        "peer_networks": ["10.9.0.0/24", "10.10.0.0/24"], "secret": "between us", **more,
    }  # fmt: skip


def guarded(acl: str | None = "office") -> tuple[Json, Json]:
    """The office as a tier, and its ACL: from beyond, to port 80 alone."""
    item = {"id": "web", "action": "allow", "protocol": "tcp", "ports": span(80), "cidrs": ["10.9.0.0/24"]}
    return office(acl=acl), {"_": "acls", "id": "office", "ingress": [item]}


@pytest.fixture(scope="module", name="near")
def near_fixture(stage: Stage) -> Iterator[Daemon]:
    """A charon in the machine `near`, with two networks behind it."""
    machine = stage.near
    for cidr in (f"{BEYOND}/24", f"{FURTHER}/24"):
        machine.run(("ip", "address", "add", cidr, "dev", "lo"))
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(machine.path.name, Path(folder))
        daemon.start()
        serve(stage)
        try:
            yield daemon
        finally:
            print(daemon.log()[-6000:])
            daemon.stop()


def serve(stage: Stage) -> None:
    """Let `near` answer by the link of its ESP, too, which has just been made."""
    wait_for(lambda: "ipsec0" in stage.near.run(("ip", "link")).stdout, 10, "no link of the far end's ESP")
    with stage.near.entered():
        for port in (22, 80):
            stage.services._listen(stage.near, socket.AF_INET, port, "ipsec0")


def load(daemon: Daemon, secret: str = "between us", **more: str) -> None:
    children = (
        "net { local_ts = 10.9.0.0/24,10.10.0.0/24\n remote_ts = 10.1.1.0/24\n esp_proposals = aes256gcm16-ecp384 }"
    )
    told = {"version": "2", "at": NEAR, "remote": LEFT, "ike": "aes256-sha256-modp2048", "id": NEAR, **more}
    daemon.load(FAR.format(children=children, secret=secret, **told))


def is_up(daemon: Daemon) -> None:
    wait_for(lambda: bool(daemon.children()), 60, "the tunnel does not come up")


def test_a_site_with_two_networks_under_an_acl(stage: Stage, near: Daemon) -> None:
    load(near)
    stage.push(*guarded(), site())
    is_up(near)
    # Whose ESP is which: the kernel's here, charon's own there.
    assert "espinudp" in stage.run("ip xfrm state")
    stage.meets("near", tcp(stage.web, BEYOND, 80), tcp(stage.web, FURTHER, 80), seen=WEB)
    stage.meets("near", echo(stage.mail, BEYOND))
    stage.meets("web", tcp(stage.near, WEB, 80, source=BEYOND), seen=BEYOND)
    stage.silent(
        tcp(stage.near, WEB, 22, source=BEYOND), tcp(stage.near, WEB, 80, source=FURTHER),
        tcp(stage.far, WEB, 80), tcp(stage.far, BEYOND, 80),
    )  # fmt: skip


def test_dead_peers_delay_no_push_and_disturb_no_tunnel(stage: Stage, near: Daemon) -> None:
    is_up(near)
    before = next(iter(near.sas().values()))["uniqueid"]
    started = time.monotonic()
    stage.bed.patch(put(site("lyon", peer="203.0.113.77", peer_networks=["10.20.0.0/24"], passive=True)))
    waiting = time.monotonic() - started
    dead = [site(f"dead-{n}", peer=f"203.0.113.{70 + n}", peer_networks=[f"10.30.{n}.0/24"]) for n in range(3)]
    dead.append(site("named", peer="nobody.invalid", peer_networks=["10.31.0.0/24"]))
    took = []
    for item in dead:
        started = time.monotonic()
        stage.bed.patch(put(item))
        took.append(time.monotonic() - started)
    assert max(took) < waiting + 5.0, (waiting, took)
    started = time.monotonic()
    stage.bed.patch(*(remove(item) for item in (*dead, site("lyon"))))
    assert time.monotonic() - started < waiting + 10.0
    assert next(iter(near.sas().values()))["uniqueid"] == before
    stage.meets("near", tcp(stage.web, BEYOND, 80))


def test_another_secret_and_another_network(stage: Stage, near: Daemon) -> None:
    """A new secret ends nothing; other networks are another tunnel, and it is there by itself."""
    load(near, "the new one")
    flow = stage.flow(tcp(stage.web, BEYOND, 80))
    stage.bed.patch(put(site(secret="the new one")))
    assert flow.goes_on()
    stage.bed.patch(put(site(secret="the new one", peer_networks=["10.9.0.0/24"])))
    wait_for(lambda: "10.10.0.0/24" not in str(near.children()) and bool(near.children()), 60, "no other tunnel")
    stage.meets("near", tcp(stage.web, BEYOND, 80))
    stage.silent(tcp(stage.web, FURTHER, 80))


def test_a_daemon_that_is_killed_is_told_again(stage: Stage, near: Daemon) -> None:
    stage.run("pkill -9 -x charon-systemd")
    wait_for(lambda: stage.bed.run("swanctl", "--list-conns", "--uri", "unix:///run/narthex/ipsec/vici", check=False)
             .startswith("site.paris"), 60, "it is not told")  # fmt: skip
    wait_for(lambda: bool(near.children()), 90, "the tunnel does not come up")
    stage.meets("near", tcp(stage.web, BEYOND, 80))


def test_a_site_that_is_gone_leaves_nothing(stage: Stage, near: Daemon) -> None:
    stage.push(*guarded(None))
    assert stage.run("ip xfrm state").strip() == ""
    assert stage.run("ip xfrm policy").strip() == ""
    assert "xfrm" not in stage.run("ip -d link show type xfrm")
    wait_for(lambda: near.sas() == {}, 10, "the peer was not told")
    stage.silent(tcp(stage.web, BEYOND, 80))
    stage.silent(*(udp(stage.near, LEFT, port) for port in (500, 4500)))


# --- a far end with the kernel's ESP, in the router's own machine -----------------------------------------------------

OTHER = "100.64.9.2"
_NAMESPACE = """set -e
ip netns add far
ip link add vfar type veth peer name eth0 netns far
ip address add 100.64.9.1/30 dev vfar
ip link set vfar up
ip -n far link set lo up
ip -n far address add 100.64.9.2/30 dev eth0
ip -n far link set eth0 up
ip -n far route add default via 100.64.9.1
ip -n far address add 10.11.0.1/24 dev lo
mkdir -p /root/far
systemd-run --unit far ip netns exec far env STRONGSWAN_CONF=/root/far/strongswan.conf charon-systemd
"""


class Far:
    """A charon in a namespace of the router's machine."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        plugins = PLUGINS.replace("kernel-libipsec ", "")
        vici = "plugins { vici { socket = unix:///root/far/vici } }"
        self.write("strongswan.conf", f"charon {{\n load = {plugins}\n {vici}\n}}\n")
        self.shell(_NAMESPACE)

    def shell(self, text: str) -> str:
        return self.stage.bed.run("sh", "-c", text)

    def write(self, path: str, text: str) -> None:
        coded = b64encode(text.encode()).decode()
        self.shell(f"mkdir -p $(dirname /root/far/{path}) && echo {coded} | base64 -d >/root/far/{path}")

    def load(self, text: str, **files: str) -> None:
        for name, content in files.items():
            self.write(name.replace("__", "/"), content)
        self.write("swanctl.conf", text)
        load = "SWANCTL_DIR=/root/far swanctl --load-all --noprompt --file /root/far/swanctl.conf"
        self.shell(f"until [ -S /root/far/vici ]; do sleep 0.2; done; {load} --uri unix:///root/far/vici")


CERTIFIED = """connections { router {
  version = 2
  local_addrs = 100.64.9.2
  remote_addrs = 203.0.113.2
  proposals = aes256-sha256-modp2048
  local { auth = pubkey
    certs = far.pem
    id = far.example.org }
  remote { auth = pubkey
    cacerts = ca.pem
    id = router.example.org }
  children { net { local_ts = 10.11.0.0/24
    remote_ts = 10.1.1.0/24
    esp_proposals = aes256-sha256-modp2048 } } } }"""


def answers(stage: Stage) -> bool:
    return stage.web.run(("ping", "-c1", "-W2", LEGACY), check=False).returncode == 0


def test_plain_esp_by_ikev1_then_in_udp_by_certificates(stage: Stage) -> None:
    far = Far(stage)
    child = "net { local_ts = 10.11.0.0/24\n remote_ts = 10.1.1.0/24\n esp_proposals = 3des-sha1 }"
    old = {"version": "1", "at": OTHER, "remote": LEFT, "ike": "3des-sha1-modp1024", "id": OTHER, "secret": "old"}
    far.load(FAR.format(children=child, **old))
    weak = {"ike": ["3des-sha1-modp1024"], "esp": ["3des-sha1"], "weak": True, "version": "ikev1", "secret": "old"}
    there = {"peer": OTHER, "peer_networks": ["10.11.0.0/24"]}
    stage.push(*guarded(None), site("far", **there, **weak))
    wait_for(lambda: answers(stage), 90, "no tunnel by IKEv1")
    states = stage.run("ip xfrm state")
    assert "des3_ede" in states
    assert "espinudp" not in states
    ours, theirs = Authority("ours"), Authority("theirs")
    own, peer = ours.sign("router.example.org"), theirs.sign("far.example.org")
    files = {
        "x509ca__ca.pem": ours.certificate,
        "x509__far.pem": peer.certificate,
        "private__far.pem": peer.private_key,
    }
    far.load(CERTIFIED, **files)
    certified = {
        "secret": None, "certificate": own.certificate, "private_key": own.private_key, "encapsulation": True,
        "peer_ca": theirs.certificate, "local_id": "router.example.org", "peer_id": "far.example.org",
    }  # fmt: skip
    stage.push(*guarded(None), site("far", **there, **certified))
    wait_for(lambda: "espinudp" in stage.run("ip xfrm state"), 90, "no tunnel by certificates")
    wait_for(lambda: answers(stage), 60, "nobody answers through it")
    stage.push(*guarded(None))


# --- remote access ----------------------------------------------------------------------------------------------------


class Road:
    """Remote access with users, and its authority."""

    def __init__(self) -> None:
        self.ours = Authority("ours")
        self.own = self.ours.sign("vpn.example.org")

    def access(self, **more: Any) -> Json:
        return {
            "_": "ipsec_access", "id": "road", "address": LEFT, "name": "vpn.example.org",
            "certificate": self.own.certificate, "private_key": self.own.private_key,
            "addresses": ["10.8.0.1/24"], "routes": ["10.1.1.0/24"], **more,
        }  # fmt: skip

    def load(self, daemon: Daemon, login: str, password: str) -> None:
        local = f"auth = eap-mschapv2\n eap_id = {login}\n id = phone"
        text = CLIENT.format(at=NEAR, local=local, login=login, password=password).replace("203.0.113.10", LEFT)
        daemon.load(text, **{"x509ca__ca.pem": self.ours.certificate})


def user(login: str, password: str = "pass word", **more: Any) -> Json:
    return {"_": "ipsec_users", "id": login, "access": "road", "login": login, "password": password, **more}


def test_users_are_added_changed_and_cut_off_at_once(stage: Stage, near: Daemon) -> None:
    road = Road()
    stage.push(road.access(), user("alice"))
    stage.bed.patch(put(user("bob")))
    road.load(near, "bob", "pass word")
    assert near.begin("net", 60) == ""
    flow = stage.flow(tcp(stage.near, WEB, 80, source="10.8.0.2"))
    assert flow.goes_on()
    stage.meets("web", echo(stage.near, WEB, source="10.8.0.2"))
    stage.silent(tcp(stage.near, DB, 80, source="10.8.0.2"))  # a split tunnel leads there no more than its routes say
    stage.bed.patch(put(user("alice", "another")), put(user("carol")))
    assert flow.goes_on()
    stage.bed.patch(put(user("bob", "another")))
    wait_for(lambda: near.sas() == {}, 10, "he is still there")
    assert "failed" in near.begin("net", 60)
    road.load(near, "bob", "another")
    assert near.begin("net", 60) == ""
    stage.meets("web", tcp(stage.near, WEB, 80, source="10.8.0.2"))
    stage.bed.patch(remove(user("bob")))
    wait_for(lambda: near.sas() == {}, 10, "he is still there")
    assert "failed" in near.begin("net", 60)
    assert stage.run("ip xfrm state").strip() == ""
