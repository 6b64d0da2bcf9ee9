"""IPsec as charon takes it: told part by part over its socket, observed, changed, and negotiated with a far end.

What the packets do is shown in tests/vm/test_ipsec.py, where the kernel has ESP and XFRM interfaces.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.charon import CharonError
from appliance.checkup import answers
from appliance.document import validate
from router.config import Config
from router.config_ipsec import AEADS, ENCRYPTIONS, GROUPS, INTEGRITIES
from router.ipsec import ike_words
from tests.certificates import Authority
from tests.netns.ike import Daemon, RouterDaemon, Wire, facts_of
from tests.netns.segment import run, until
from tests.router.samples import document
from tests.trials import trials

OURS, THEIRS, DEAD = "203.0.113.10", "203.0.113.99", "203.0.113.77"
FAR = """
connections {{
  router {{
    version = {version}
    local_addrs = {at}
    remote_addrs = {remote}
    proposals = {ike}
    local {{ auth = psk
      id = {id} }}
    remote {{ auth = psk
      id = {remote} }}
    children {{ {children} }}
  }}
}}
secrets {{ ike {{ secret = "{secret}" }} }}
"""


def site(ident: str = "paris", **more: Any) -> dict[str, Any]:
    return {
        "id": ident, "address": OURS, "peer": THEIRS, "networks": ["10.1.1.0/24"], "peer_networks": ["10.9.0.0/24"],
        "secret": "a b&c!", **more,
    }  # fmt: skip


def made(*sites: dict[str, Any], **more: Any) -> Config:
    return validate(Config, document(ipsec_sites=list(sites), **more))


def far(daemon: Daemon, children: str = "", **more: str) -> None:
    """Load the far end's side, written by hand."""
    told = {"version": "2", "at": THEIRS, "remote": OURS, "ike": "aes256-sha256-modp2048", "id": THEIRS, **more}
    told.setdefault("secret", "a b&c!")
    plain = "net { local_ts = 10.9.0.0/24\n remote_ts = 10.1.1.0/24\n esp_proposals = aes256-sha256-modp2048 }"
    daemon.load(FAR.format(children=children or plain, **told))


@pytest.fixture(scope="module", name="wire")
def wire_fixture() -> Iterator[Wire]:
    made = Wire()
    try:
        made.make()
        yield made
    finally:
        made.close()


@pytest.fixture(name="router")
def router_fixture(wire: Wire) -> Iterator[RouterDaemon]:
    found = wire.daemon(RouterDaemon, facts=facts_of(made()))
    yield found
    found.stop()


@pytest.fixture(name="there")
def there_fixture(wire: Wire) -> Iterator[Daemon]:
    found = wire.daemon()
    found.start()
    yield found
    found.stop()


def test_a_site_comes_up_by_itself(router: RouterDaemon, there: Daemon) -> None:
    far(there)
    told = router.make(made(site()))
    assert told == ["set secret site.paris of ipsec", "set connection site.paris of ipsec"]
    until(lambda: router.children() == {"site.paris all": "10.1.1.0/24 - 10.9.0.0/24"}, 10)
    assert router.drift() == []


def test_health_tells_who_is_up_and_why_another_is_not(router: RouterDaemon, there: Daemon) -> None:
    far(there)
    dead = site("lyon", peer=DEAD, peer_networks=["10.20.0.0/24"])
    config = made(site(), dead)
    router.make(config)
    until(lambda: bool(router.children()), 10)
    checks = [{"kind": c.kind, "target": c.target, "name": c.name, "here": ""} for c in router.state.checks]
    (lyon, _), (paris, words) = (told for told in answers(checks) if told)
    assert (lyon, paris, words) == (False, True, f"up with {THEIRS}, 1 child SAs")
    router.stop()
    assert [told and told[0] for told in answers(checks)] == [False, False]


def test_dead_peers_delay_nothing_and_a_change_disturbs_no_other(router: RouterDaemon, there: Daemon) -> None:
    far(there)
    router.make(made(site()))
    until(lambda: bool(router.children()), 10)
    before = router.sas()["site.paris"]["uniqueid"]
    dead = [site(f"dead-{n}", peer=f"203.0.113.{70 + n}", peer_networks=[f"10.20.{n}.0/24"]) for n in range(3)]
    dead.append(site("named", peer="nobody.invalid", peer_networks=["10.21.0.0/24"]))
    started = time.monotonic()
    router.make(made(site(), *dead))
    took = time.monotonic() - started
    assert took < 1.5, took
    started = time.monotonic()
    steps = router.make(made(site(), *(d | {"peer_networks": ["10.30.0.0/24"]} for d in dead[:1])))
    assert time.monotonic() - started < 1.5
    assert sorted({s.split()[2] for s in steps}) == ["site.dead-0", "site.dead-1", "site.dead-2", "site.named"]
    assert router.sas()["site.paris"]["uniqueid"] == before


def test_a_peer_that_died_is_noticed_and_asked_again(router: RouterDaemon, there: Daemon) -> None:
    """It forgot all, and says nothing; nobody sends anything into the tunnel."""
    far(there)
    router.make(made(site(dpd=1)))
    # Two seconds of patience in the place of a minute and a half.
    router.stop()
    conf = (router.folder / "strongswan.conf").read_text()
    router.start(conf.replace("retransmit_tries = 4", "retransmit_tries = 1\n  retransmit_timeout = 0.7"))
    until(lambda: router.socket.exists() and bool(router.drift()))
    router.heal()
    until(lambda: bool(router.children()), 10)
    before = router.sas()["site.paris"]["uniqueid"]
    assert there.process is not None
    there.process.kill()
    there.process.wait()
    there.socket.unlink()
    there.start()
    far(there)
    until(lambda: bool(there.children()) and router.sas()["site.paris"]["uniqueid"] != before, 20)


def test_a_site_comes_up_when_its_address_comes(router: RouterDaemon, there: Daemon, wire: Wire) -> None:
    """As on a router of two: who is behind has no address, and tries for ever."""
    far(there, remote="203.0.113.11")
    router.make(made(site(address="203.0.113.11")))
    assert router.sas() == {}
    run("ip", "-n", wire.router, "address", "add", "203.0.113.11/24", "dev", "eth0")
    try:
        until(lambda: bool(router.children()), 30)
    finally:
        run("ip", "-n", wire.router, "address", "delete", "203.0.113.11/24", "dev", "eth0")


def test_ikev1_has_a_child_for_each_pair_of_networks(router: RouterDaemon, there: Daemon) -> None:
    children = "".join(
        f"n{n} {{ local_ts = {theirs}\n remote_ts = 10.1.1.0/24\n esp_proposals = 3des-md5-modp1024 }}\n"
        for n, theirs in enumerate(("10.9.0.0/24", "10.10.0.0/24"))
    )
    far(there, children, version="1", ike="3des-md5-modp1024")
    weak = {"ike": ["3des-md5-modp1024"], "esp": ["3des-md5-modp1024"], "weak": True}
    router.make(made(site(version="ikev1", peer_networks=["10.9.0.0/24", "10.10.0.0/24"], **weak)))
    wanted = {
        f"site.paris 10.1.1.0/24 {theirs}": f"10.1.1.0/24 - {theirs}" for theirs in ("10.9.0.0/24", "10.10.0.0/24")
    }
    until(lambda: router.children() == wanted, 10)
    assert router.sas()["site.paris"]["encr-alg"] == b"3DES_CBC"


def test_two_networks_in_one_child_and_ids_by_name(router: RouterDaemon, there: Daemon) -> None:
    children = (
        "net { local_ts = 10.9.0.0/24,10.10.0.0/24\n remote_ts = 10.1.1.0/24\n esp_proposals = aes256gcm16-ecp384 }"
    )
    far(there, children, id="far.example.org", remote="%any", ike="aes256gcm16-prfsha384-ecp384")
    named = {"peer_id": "far.example.org", "local_id": "here@example.org"}
    router.make(made(site(peer_networks=["10.9.0.0/24", "10.10.0.0/24"], **named)))
    until(lambda: router.children() == {"site.paris all": "10.1.1.0/24 - 10.9.0.0/24 10.10.0.0/24"}, 10)
    assert there.sas()["router"]["remote-id"] == b"here@example.org"


def test_a_passive_site_waits_and_takes_a_caller_from_anywhere(router: RouterDaemon, there: Daemon) -> None:
    far(there, at="203.0.113.98", id="roaming")
    router.make(
        made(
            site(peer=None, peer_id="roaming"),
            site("b", peer="203.0.113.98", peer_networks=["10.8.0.0/24"], passive=True),
        )
    )
    time.sleep(0.3)
    assert router.sas() == {}
    assert there.begin("net") == ""
    assert router.children() == {"site.paris all": "10.1.1.0/24 - 10.9.0.0/24"}


def test_another_secret_is_for_the_next_time_and_a_wrong_one_opens_nothing(router: RouterDaemon, there: Daemon) -> None:
    far(there)
    router.make(made(site()))
    until(lambda: bool(router.children()), 10)
    before = router.sas()["site.paris"]["uniqueid"]
    assert router.make(made(site(secret="another one"))) == ["set secret site.paris of ipsec"]
    assert router.sas()["site.paris"]["uniqueid"] == before
    with there.vici() as vici:
        list(vici.terminate({"ike": "router", "force": "yes"}))
    assert "AUTHENTICATION_FAILED" in there.begin("net")
    far(there, secret="another one")
    assert there.begin("net") == ""


def test_sites_by_certificates(router: RouterDaemon, there: Daemon) -> None:
    ours, theirs, stranger = Authority("ours"), Authority("theirs"), Authority("stranger")
    own, peer, other = ours.sign("router.example.org"), theirs.sign("far.example.org"), stranger.sign("far.example.org")
    text = """connections { router {
      version = 2
      local_addrs = 203.0.113.99
      remote_addrs = 203.0.113.10
      proposals = aes256-sha256-modp2048
      local { auth = pubkey
        certs = far.pem
        id = far.example.org }
      remote { auth = pubkey
        cacerts = ca.pem
        id = router.example.org }
      children { net { local_ts = 10.9.0.0/24
        remote_ts = 10.1.1.0/24
        esp_proposals = aes256-sha256-modp2048 } } } }"""
    files = {
        "x509ca__ca.pem": ours.certificate,
        "x509__far.pem": peer.certificate,
        "private__far.pem": peer.private_key,
    }
    there.load(text, **files)
    certified = {
        "secret": None, "certificate": own.certificate, "private_key": own.private_key, "passive": True,
        "peer_ca": theirs.certificate, "local_id": "router.example.org", "peer_id": "far.example.org",
    }  # fmt: skip
    assert router.make(made(site(**certified)))[0] == "set key site.paris of ipsec"
    assert there.begin("net") == ""
    assert router.children() == {"site.paris all": "10.1.1.0/24 - 10.9.0.0/24"}
    with there.vici() as vici:
        list(vici.terminate({"ike": "router", "force": "yes"}))
    there.load(text, **files | {"x509__far.pem": other.certificate, "private__far.pem": other.private_key})
    assert "AUTHENTICATION_FAILED" in there.begin("net")


def test_what_charon_refuses_is_no_entry_and_disturbs_nobody(router: RouterDaemon, there: Daemon) -> None:
    far(there)
    router.make(made(site()))
    until(lambda: bool(router.children()), 10)
    before = router.sas()["site.paris"]["uniqueid"]
    nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    key = Authority("x").sign("x.example.org").private_key
    certified = {"secret": None, "certificate": nonsense, "private_key": key, "peer_ca": nonsense, "peer_id": "x"}
    with pytest.raises(CharonError, match="invalid value for: certs"):
        router.make(made(site(), site("b", peer=DEAD, peer_networks=["10.20.0.0/24"], **certified)))
    assert router.drift() == ["remove key site.b of ipsec"]
    router.heal()
    assert router.drift() == []
    assert router.sas()["site.paris"]["uniqueid"] == before


# --- what stands there ------------------------------------------------------------------------------------------------


def test_what_nobody_told_is_withdrawn_and_what_is_gone_is_told_again(router: RouterDaemon) -> None:
    router.make(made(site(), site("lyon", peer=DEAD, peer_networks=["10.20.0.0/24"])))
    with router.vici() as vici:
        vici.unload_conn({"name": "site.paris"})
        vici.unload_shared({"id": "site.lyon"})
        vici.load_shared({"id": "theirs", "type": "IKE", "data": "x", "owners": ["%any"]})
        told = next(told for found in vici.list_conns({"ike": "site.lyon"}) for told in found.values())
        assert told["remote_addrs"] == [DEAD.encode()]
        vici.load_conn({"site.lyon": {"local_addrs": [OURS], "remote_addrs": ["203.0.113.98"], "version": "2"}})
        vici.load_conn({"more": {"version": "2"}})
    assert set(router.drift()) == {
        "set connection site.paris of ipsec", "set secret site.lyon of ipsec", "remove secret theirs of ipsec",
        "set connection site.lyon of ipsec", "remove connection more of ipsec",
    }  # fmt: skip
    router.heal()
    assert router.drift() == []


def test_a_daemon_that_died_is_known_to_have_forgotten(router: RouterDaemon) -> None:
    config = made(site(peer=DEAD))
    router.make(config)
    assert router.process is not None
    assert router.charon.forgetful({"ipsec": (router.process.pid,)}) == {}
    router.stop()
    assert [d.split()[0] for d in router.drift()] == ["set", "set"]
    router.start((router.folder / "strongswan.conf").read_text())
    assert router.charon.forgetful({"ipsec": (router.process.pid,)}).keys() == {"ipsec"}
    until(lambda: router.socket.exists())
    router.heal()
    assert router.drift() == []
    assert router.charon.forgetful({"ipsec": (router.process.pid,)}) == {}


def test_the_last_object_takes_the_daemon_along(router: RouterDaemon) -> None:
    router.make(made(site(peer=DEAD)))
    assert router.make(made()) == []
    assert router.process is None


# --- remote access ----------------------------------------------------------------------------------------------------

CLIENT = """connections {{ road {{
  version = 2
  local_addrs = {at}
  remote_addrs = 203.0.113.10
  proposals = aes256-sha256-modp2048
  vips = 0.0.0.0
  local {{ {local} }}
  remote {{ auth = pubkey
    id = vpn.example.org
    cacerts = ca.pem }}
  children {{ net {{ remote_ts = 0.0.0.0/0
    esp_proposals = aes256-sha256 }} }} }} }}
secrets {{ eap {{ id = {login}
  secret = "{password}" }} }}"""


class Roads:
    """A router with remote access, its authorities, and clients."""

    def __init__(self) -> None:
        self.ours, self.people = Authority("ours"), Authority("people")
        self.own = self.ours.sign("vpn.example.org")

    def access(self, **more: Any) -> dict[str, Any]:
        return {
            "id": "road", "address": OURS, "name": "vpn.example.org", "certificate": self.own.certificate,
            "private_key": self.own.private_key, "user_ca": self.people.certificate, "addresses": ["10.8.0.1/24"],
            "dns": "web", **more,
        }  # fmt: skip

    def document(self, *users: dict[str, Any], **more: Any) -> Config:
        return made(ipsec_access=[self.access(**more)], ipsec_users=list(users))

    def client(self, daemon: Daemon, login: str, password: str) -> None:
        local = f"auth = eap-mschapv2\n eap_id = {login}\n id = phone"
        text = CLIENT.format(at=THEIRS, local=local, login=login, password=password)
        daemon.load(text, **{"x509ca__ca.pem": self.ours.certificate})


def user(login: str, password: str | None = "pass word", **more: Any) -> dict[str, Any]:
    return {"id": login.partition("@")[0], "access": "road", "login": login, "password": password, **more}


def test_users_come_and_are_changed_and_cut_off_alone(router: RouterDaemon, wire: Wire) -> None:
    roads = Roads()
    phones = [wire.daemon() for _ in range(1)]
    router.make(roads.document(user("alice"), user("bob"), user("carol")))
    phone = phones[0]
    phone.start()
    try:
        roads.client(phone, "bob", "pass word")
        assert phone.begin("net") == ""
        assert router.children() == {"access.road all": "10.1.1.0/24 10.1.2.0/24 - 10.8.0.2/32"}
        assert router.sas()["access.road"]["remote-eap-id"] == b"bob"
        # Somebody else changes, comes, goes: bob stays.
        before = router.sas()["access.road"]["uniqueid"]
        router.make(roads.document(user("alice", "another"), user("bob"), user("dave")))
        assert router.sas()["access.road"]["uniqueid"] == before
        # His password changes: he is sent away, and the old one opens nothing.
        router.make(roads.document(user("alice", "another"), user("bob", "new"), user("dave")))
        assert router.sas() == {}
        until(lambda: phone.sas() == {})
        assert "failed" in phone.begin("net")
        roads.client(phone, "bob", "new")
        assert phone.begin("net") == ""
        # He is not enabled any more.
        router.make(roads.document(user("alice", "another"), user("bob", "new", enabled=False), user("dave")))
        assert router.sas() == {}
        until(lambda: phone.sas() == {})
        assert "failed" in phone.begin("net")
    finally:
        phone.stop()


def test_a_user_by_certificate(router: RouterDaemon, there: Daemon) -> None:
    roads = Roads()
    router.make(roads.document(user("alice"), user("eve@example.org", None), user("mia@example.org", None)))
    eve = roads.people.sign("eve@example.org")
    local = "auth = pubkey\n certs = own.pem\n id = eve@example.org"
    text = CLIENT.format(at=THEIRS, local=local, login="none", password="none")
    files = {
        "x509ca__ca.pem": roads.ours.certificate,
        "x509__own.pem": eve.certificate,
        "private__own.pem": eve.private_key,
    }
    there.load(text, **files)
    assert there.begin("net") == ""
    assert router.children() == {"user.eve all": "10.1.1.0/24 10.1.2.0/24 - 10.8.0.2/32"}
    assert there.sas()["road"]["local-vips"] == [b"10.8.0.2"]
    router.make(roads.document(user("alice"), user("mia@example.org", None)))
    assert router.sas() == {}
    assert "failed" in there.begin("net")


def test_another_pool_goes_when_those_who_had_it_are_gone(router: RouterDaemon, there: Daemon) -> None:
    roads = Roads()
    router.make(roads.document(user("bob")))
    roads.client(there, "bob", "pass word")
    assert there.begin("net") == ""
    steps = router.make(roads.document(user("bob"), addresses=["10.8.4.1/24"]))
    assert [s.partition(" of")[0] for s in steps] == [
        "set pool road 10.8.4.2-10.8.4.254", "set connection access.road", "remove pool road 10.8.0.2-10.8.0.254",
    ]  # fmt: skip
    until(lambda: there.sas() == {})
    assert there.begin("net") == ""
    assert router.children() == {"access.road all": "10.1.1.0/24 10.1.2.0/24 - 10.8.4.2/32"}


# --- ciphers ----------------------------------------------------------------------------------------------------------

EVERY = [
    (f"{encryption}-{integrity}-{group}", f"{encryption}-{group}" if encryption in AEADS else "")
    for encryption in ENCRYPTIONS
    for integrity in INTEGRITIES
    for group in GROUPS
]


@pytest.mark.soak("router")
def test_every_cipher_is_agreed_upon(router: RouterDaemon, there: Daemon) -> None:
    """Of IKE and of ESP, by the kernel-libipsec of both. A tenth of them has every word at least once."""
    known = random.Random(7).sample(EVERY, len(EVERY))
    words = {word for ike, _ in known[: trials(len(known))] for word in ike.split("-")}
    assert words == {*ENCRYPTIONS, *INTEGRITIES, *GROUPS}
    for number, (ike, aead) in enumerate(known[: trials(len(known))]):
        esp = aead or ike
        child = f"net {{ local_ts = 10.9.0.0/24\n remote_ts = 10.1.1.0/24\n esp_proposals = {esp} }}"
        far(there, child, ike=ike_words([ike])[0])
        router.make(made(site(ike=[ike], esp=[esp], weak=True, dpd=30 + number % 2)))
        until(lambda: bool(router.children()), 20)
        sa = router.sas()["site.paris"]
        agreed = (sa["encr-alg"].decode(), sa.get("encr-keysize", b"").decode(), sa["dh-group"].decode())
        assert agreed == _said(ike), (ike, agreed)


def _said(ike: str) -> tuple[str, str, str]:
    """Encryption, its bits and the group in charon's words."""
    encryption, _, group = ike.split("-")
    bits = encryption.removeprefix("aes").removesuffix("gcm16") if encryption.startswith("aes") else ""
    name = {"3des": "3DES_CBC", "chacha20poly1305": "CHACHA20_POLY1305"}.get(encryption)
    name = name or ("AES_GCM_16" if encryption.endswith("gcm16") else "AES_CBC")
    if group == "curve25519":
        return name, bits, "CURVE_25519"
    kind = "MODP" if group.startswith("modp") else "ECP"
    return name, bits, f"{kind}_{group[len(kind) :]}"
