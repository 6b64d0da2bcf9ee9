"""Narrow types: one canonical form, alphabets that break no configuration file, and secrets that stay so."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from appliance import values
from appliance.document import DocumentError, Model, validate
from appliance.log import Log
from appliance.plan import diff, digest, outline, plan
from appliance.state import File
from appliance.values import Secret, address, cidr, contains, host_cidr, is_v6, mac, subnet
from tests.appliance import toy
from tests.appliance.rig import BASE, Rig, put_in

# What breaks out of one configuration language or another, or hides in it.
HOSTILE = (
    "a\nb",
    "a\r\nb",
    "a\n",
    "\n",
    "a\tb",
    "a\x00b",
    "a\x1b[31m",
    "a'b",
    'a"b',
    "a`b`",
    "a\\b",
    "a$(id)b",
    "${x}",
    "$x",
    "{{ 7*7 }}",
    "{% raw %}",
    "{#",
    "#x",
    "%s%n",
    "\u202eabc",
    "a\u2028b",
    "a\x85b",
    "\xa0",
    "\u0430bc",
    "\uff21",
    "\u0660",
    "\U0001f600",
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("255.255.255.255", "255.255.255.255"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("::", "::"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
    ],
)
def test_addresses(text: str, canonical: str) -> None:
    assert address(text) == canonical
    assert is_v6(canonical) == (":" in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "10.1",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.256",
        "01.2.3.4",
        "1.2.3.04",
        "0x1.2.3.4",
        " 1.2.3.4",
        "1.2.3.4 ",
        "1.2.3.4\n",
        "1.2.3.4/24",
        "1.2.3.-4",
        "٠.2.3.4",
        "::1%eth0",
        ":::",
        "1::2::3",
        "::1/64",
        "g::",
        "localhost",
        *HOSTILE,
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address; write it as"):
        address(text)


@pytest.mark.parametrize(
    ("check", "text", "canonical"),
    [
        (cidr, "10.1.1.0/24", "10.1.1.0/24"), (cidr, "10.1.1.1", "10.1.1.1/32"), (cidr, "0.0.0.0/0", "0.0.0.0/0"),
        (cidr, "2001:DB8::/32", "2001:db8::/32"), (cidr, "10.0.0.0/08", "10.0.0.0/8"),
        (host_cidr, "10.1.1.1/24", "10.1.1.1/24"), (host_cidr, "2001:DB8::1/64", "2001:db8::1/64"),
        (mac, "02:00:00:00:00:0A", "02:00:00:00:00:0a"), (mac, "02-00-00-00-00-0a", "02:00:00:00:00:0a"),
    ],
)  # fmt: skip
def test_canonical(check: Callable[[str], str], text: str, canonical: str) -> None:
    assert check(text) == canonical
    assert check(canonical) == canonical


@pytest.mark.parametrize(
    ("check", "text", "words"),
    [
        (cidr, "10.1.1.1/24", "has bits set behind its prefix; write 10.1.1.0/24"),
        (cidr, "10.1/16", "not an IP address"),
        (cidr, "10.0.0.0/33", "not a network"),
        (cidr, "10.0.0.0/255.0.0.0", "is a number"),
        (cidr, "10.0.0.0/-1", "is a number"),
        (cidr, "10.0.0.0/", "not a network"),
        (cidr, "10.0.0.0/8/8", "is a number"),
        (cidr, "10.0.0.0/٨", "is a number"),
        (cidr, "10.0.0.0/" + "9" * 40, "not a network"),
        (cidr, "2001:db8::/129", "not a network"),
        (host_cidr, "10.1.1.1", "no prefix length; write it as 10.1.1.1/24"),
        (host_cidr, "10.1.1.1/", "not a network"),
        (mac, "020000000001", "not a MAC"),
        (mac, "02:00:00:00:00", "not a MAC"),
        (mac, "02:00:00:00:00:0g", "not a MAC"),
        (mac, "01:00:5e:00:00:01", "group or null"),
        (mac, "ff:ff:ff:ff:ff:ff", "group or null"),
        (mac, "00:00:00:00:00:00", "group or null"),
        (mac, "02:00:00:00:00:01\n", "not a MAC"),
    ],
)
def test_refused_with_the_remedy(check: Callable[[str], str], text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(text)


def test_containment() -> None:
    assert contains("10.1.1.1/24", "10.1.1.200")
    assert contains("10.0.0.0/8", "10.1.0.0/16")
    assert not contains("10.1.0.0/16", "10.0.0.0/8")
    assert not contains("0.0.0.0/0", "::1")
    assert not contains("::/0", "10.0.0.1")
    assert subnet("10.1.1.77/24") == "10.1.1.0/24"


NAMES = ("Identifier", "Label", "Hostname", "Address", "Cidr", "HostCidr", "Mac", "Text")


@pytest.mark.parametrize("name", [*NAMES, "Secret"])
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_refused_by_every_type(name: str, text: str) -> None:
    kind: Any = TypeAdapter(getattr(values, name))
    with pytest.raises(ValidationError):
        kind.validate_json(json.dumps(text))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_no_text(name: str) -> None:
    class Holder(Model):
        value: getattr(values, name)  # type: ignore[valid-type]

    for wrong in ("1", "true", "null", "[]", "{}", "1e999"):
        with pytest.raises(ValidationError):
            Holder.model_validate_json(f'{{"value": {wrong}}}')


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("Identifier", ["a", "A.b_c-9", "9" * 63], ["", "-a", ".a", "a b", "a/b", "x" * 64, "a:b"]),
        ("Label", ["a", "a-b", "9"], ["", "-a", "a-", "a.b", "a_b", "x" * 64]),
        (
            "Hostname",
            ["a", "a.example", "_sip._tcp.example"],
            ["", ".", "a.", ".a", "a..b", "a-.b", "x" * 64, "a." * 130 + "a"],
        ),
        ("Text", ["", "v=spf1 a:mail.example ~all", "1,2;3"], ["x" * 256]),
    ],
)
def test_alphabets(name: str, good: list[str], bad: list[str]) -> None:
    kind: Any = TypeAdapter(getattr(values, name))
    assert [kind.validate_python(text) for text in good] == good
    for text in bad:
        with pytest.raises(ValidationError):
            kind.validate_python(text)


# --- secrets ---

WORD = "correct horse"


@dataclass(frozen=True)
class Holder:
    secret: Secret


def test_a_secret_is_shown_to_nobody() -> None:
    secret = TypeAdapter(Secret).validate_json(f'"{WORD}"')
    account = toy.Account(id="anna", password=secret)
    shown = [
        repr(secret), str(secret), f"{secret}", f"{secret:>20}", Template("$a").substitute(a=secret), repr([secret]),
        repr(account), str(account), repr(Holder(secret)), repr({"password": secret}),
    ]  # fmt: skip
    assert type(secret) is Secret
    assert not [text for text in shown if "horse" in text]
    assert secret.reveal() == WORD
    assert type(secret.reveal()) is str
    assert secret == Secret(WORD) != Secret("other")
    assert pickle.loads(pickle.dumps(secret)) == secret


def test_a_secret_that_is_refused_is_not_shown() -> None:
    with pytest.raises(DocumentError, match="password") as caught:
        validate(toy.Account, {"id": "anna", "password": "horse\nbattery"})
    assert "horse" not in str(caught.value)
    with pytest.raises(DocumentError, match="password") as caught:
        validate(toy.Account, {"id": "anna", "password": ["horse"]})
    assert "horse" not in str(caught.value)


def test_a_secret_in_the_log_is_hidden_however_deep() -> None:
    stream = io.StringIO()
    secret = Secret(WORD)
    Log(stream).info("push", plain=secret, deep={"a": [1, (secret,)]}, model=toy.Account(id="a", password=secret))
    told = json.loads(stream.getvalue())
    assert told["plain"] == "***"
    assert "horse" not in stream.getvalue()


def test_a_secret_in_a_document_is_in_its_file_and_nowhere_else(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    before = rig.settle(BASE)
    body = rig.change(put_in("accounts", id="anna", password=WORD))
    told = json.dumps(rig.engine.plan(body).body, default=str)
    rig.host.fail_at = 1
    failed = rig.engine.patch(body)
    assert failed.status == 500
    kept = rig.engine.patch(body)
    assert kept.status == 200
    rig.host.machine = before
    drift = rig.engine.heal("timer")
    after = rig.engine.current.state
    steps = plan(before, after)
    shown = [
        told, json.dumps(failed.body, default=str), json.dumps(kept.body), rig.log.getvalue(), repr(drift), repr(after),
        diff(before, after), digest(steps), json.dumps(outline(steps)), repr(steps), " ".join(map(str, steps)),
        json.dumps(rig.store.records[2].plan), repr(rig.engine.current.config),
    ]  # fmt: skip
    assert not [text for text in shown if "horse" in text]
    (file,) = [f for f in rig.host.machine.files if "horse" in f.content]
    assert (file.path, file.mode, file.secret) == ("/etc/toy/accounts", 0o600, True)
    rig.restart()
    assert rig.engine.current.config.accounts[0].password.reveal() == WORD  # type: ignore[union-attr]
    whole = rig.engine.put(rig.engine.document(2))
    assert whole.body["result"] == "unchanged"


def test_a_secret_file_is_told_apart_by_its_digest() -> None:
    one, other = (File("/k", text, secret=True) for text in ("a", "b"))
    assert repr(one) != repr(other)
    assert "'a'" not in repr(one)
    assert "'a'" in repr(File("/k", "a"))
