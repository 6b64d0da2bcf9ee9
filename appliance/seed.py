"""The early boot: find the seed, check it whole, write down what it says, open the one way in. Run at every boot.

cloud-init reads the same seed later and does all the rest; it takes seconds that a router has not got. What was read
is kept in /etc/narthex/seed.json: a seed that is as it was costs no YAML, and one that was taken out is not missed.
A machine without a usable seed stays closed, and says on its consoles what is wrong and what to do.

    python3 -P -s -m appliance.seed      as root, after the drop-all ruleset, before agent and sshd; ends in 0 or 1

Beside it lie settings.py, seeddisk.py, seedtext.py and release.py of the same package, and nothing else of the agent.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress

from appliance.seeddisk import BUNDLE, Found, Machine, SeedError, attached, this_machine

ETC = "/etc/narthex"
RUN = "/run/narthex"
KEPT = f"{ETC}/seed.json"
WAY_IN = f"{RUN}/sshd.env"
TROUBLE = f"{RUN}/trouble"
REFUSED = f"{RUN}/refused"  # why the seed's bundle was not taken
ISSUE = "/run/issue.d/narthex.issue"
FORMAT = 1
DISK_WAIT_S = 10.0
LINK_WAIT_S = 10.0
POLL_S = 0.02
PORT = 3922


class Kept:
    """What seed.json holds: the seed as last read. `texts` are its own, by path on the disk; `files` by name in
    /etc/narthex; `mtu` (0: the driver's own) and `routes` (to, via) are the control interface's; `release` is that of
    its bundle, "" for none."""

    def __init__(
        self, instance: str, origin: str, kind: str, texts: dict[str, str], name: str, role: str, state_dir: str,
        files: dict[str, str], mac: str, address: str, mtu: int, routes: list[tuple[str, str]], release: str,
    ) -> None:  # fmt: skip
        self.instance, self.origin, self.kind, self.texts = instance, origin, kind, texts
        self.name, self.role, self.state_dir, self.files = name, role, state_dir, files
        self.mac, self.address, self.mtu, self.routes, self.release = mac, address, mtu, routes, release


def say(line: str) -> None:
    print(line, flush=True)


def bring_up(machine: Machine) -> None:
    """All of it. Raises SeedError; a seed that is wrong has changed nothing then."""
    before = read_kept(machine)
    with attached(machine, DISK_WAIT_S if before is None else 0.0) as found:
        if found is not None:
            after = taken(found, before)
            if found.bundle:
                after.release = offered(machine, found, after.release)
        elif before is not None:
            after = before
            say(f"no seed is attached; going on as {after.name} with the one of {after.origin}")
        else:
            raise SeedError(
                "no disk bears the volume id cidata or config-2: there is no seed, and there never was one; "
                "attach what ./narthex seed makes as a CD-ROM"
            )
    keep(machine, before, after)
    name_machine(machine, after.name)
    open_way_in(machine, after)


# --- what was read, and when


def read_kept(machine: Machine) -> Kept | None:
    """What an earlier boot has kept, None where it kept nothing whole."""
    try:
        with open(machine.root + KEPT, "rb") as file:
            kept = json.loads(file.read())
        return Kept(**kept["seed"]) if kept["format"] == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_same(found: Found, kept: Kept) -> bool:
    """The seed is, byte by byte, the one that was kept."""
    texts = {path: text.encode() for path, text in kept.texts.items()}
    return kept.kind == found.kind and texts == found.texts


def taken(found: Found, before: Kept | None) -> Kept:
    """The seed, checked whole. Raises SeedError."""
    if before and is_same(found, before):
        say(f"the seed on {found.origin} is as it was: {before.name}")
        return before
    from appliance.seedtext import read_seed  # PyYAML and the settings: only where they are needed

    birth = read_seed(found.kind, found.origin, found.texts)
    settings = birth.settings
    say(f"new seed on {found.origin}: {settings.name}, a {settings.role}, instance {birth.instance}")
    return Kept(
        birth.instance, found.origin, found.kind, {path: raw.decode() for path, raw in found.texts.items()},
        settings.name, settings.role, settings.state_dir, birth.files,
        settings.control_mac, settings.control_address, birth.mtu, birth.routes,
        before.release if before and before.instance == birth.instance else "",
    )  # fmt: skip


def keep(machine: Machine, before: Kept | None, after: Kept) -> None:
    """Write down what differs: first the files, last what says that they are there."""
    if before and (before.name, before.role) != (after.name, after.role):
        set_state_aside(machine, before)
    os.makedirs(machine.root + ETC, mode=0o700, exist_ok=True)
    write_files(machine.root + ETC, {name: text.encode() for name, text in after.files.items()})
    kept = json.dumps({"format": FORMAT, "seed": vars(after)}, indent=1) + "\n"
    write_files(machine.root + ETC, {"seed.json": kept.encode()})


def name_machine(machine: Machine, name: str) -> None:
    """Its name, before a log or a login prompt shows another; cloud-init writes /etc/hostname later."""
    with suppress(OSError), open(f"{machine.root}/proc/sys/kernel/hostname", "w") as file:
        file.write(f"{name}\n")


def set_state_aside(machine: Machine, before: Kept) -> None:
    """A copied disk with a seed of its own is another appliance: it must not restore the first one's document."""
    state = machine.root + before.state_dir
    aside = f"{state}.{before.name}"
    while os.path.lexists(aside):
        aside += "~"
    with suppress(FileNotFoundError):
        os.rename(state, aside)
        say(f"this disk was {before.name}'s, a {before.role}: its state is now in {aside[len(machine.root) :]}")


def write_files(folder: str, files: dict[str, bytes]) -> None:
    """Make the files in `folder` what is asked, mode 0600: those that differ, each whole or not at all."""
    new = [(f"{folder}/{name}", content) for name, content in files.items() if not _holds(f"{folder}/{name}", content)]
    for path, content in new:
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(fd, 0o600)
            while content:
                content = content[os.write(fd, content) :]
            os.fsync(fd)
        finally:
            os.close(fd)
    for path, _ in new:
        os.rename(f"{path}.new", path)
    if new:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        say("wrote " + ", ".join(path.rpartition("/")[2] for path, _ in new))


def _holds(path: str, content: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(content) + 1) == content and os.fstat(file.fileno()).st_mode & 0o777 == 0o600
    except OSError:
        return False


# --- the agent in the seed


def offered(machine: Machine, found: Found, before: str) -> str:
    """Install the bundle; its release. A broken one changes nothing: the agent that is here runs, and tells of it."""
    refusal = f"{machine.root}{REFUSED}"
    try:
        return install(machine, found, before)
    except SeedError as error:
        say(f"the agent stays as it is: {error}")
        os.makedirs(os.path.dirname(refusal), exist_ok=True)
        with open(refusal, "w") as file:
            file.write(f"{error}\n")
        return before


def install(machine: Machine, found: Found, before: str) -> str:
    """Install the seed's bundle, if it is not the one of `before`; its release. Raises SeedError.

    `before` is that of this instance: a release that came by push meanwhile stays.
    """
    place = f"{found.origin}: {BUNDLE}"
    release = bundle_release(found.bundle, place)
    if release == before:
        return release
    argv = (sys.executable, "-P", "-s", "-m", "appliance.release", "install", "--current", found.bundle)
    code, words = machine.run(argv, b"")
    if code:
        raise SeedError(f"{place}: {words or 'cannot be installed'}; give another bundle, or a seed without one")
    say(f"installed release {release} of the seed's bundle")
    return release


def bundle_release(path: str, place: str) -> str:
    """The id of the release in a bundle: a tar whose first member is release.json. tarfile costs 10 ms to import."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            size = int(head[124:136].strip(b" \0") or b"0", 8)
            if head[:100].rstrip(b"\0") != b"release.json" or not 0 < size <= 1 << 20:
                raise ValueError
            release = json.loads(file.read(size))["id"]
        if not isinstance(release, str) or not release:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise SeedError(f"{place}: not a bundle; make it with ./narthex appliance bundle") from None
    return release


# --- the way in


def open_way_in(machine: Machine, kept: Kept) -> None:
    """The control interface with its address, and tcp 3922 and ping on it. Raises SeedError."""
    way_in = machine.root + WAY_IN
    if os.path.exists(way_in):
        return say("the way in is open since this boot; the packet filter is the agent's now")
    link = wait_for_link(machine, kept.mac)
    address, is_v6 = kept.address, ":" in kept.address
    announce(machine, link)
    lines = [
        f"address replace {address} dev {link}" + (" nodad" if is_v6 else ""),
        f"link set dev {link} " + (f"mtu {kept.mtu} " if kept.mtu else "") + "up",
        *(f"route replace {to} via {via} dev {link}" for to, via in kept.routes),
    ]
    code, words = machine.run(("ip", "-batch", "-"), "\n".join([*lines, ""]).encode())
    if code:
        raise SeedError(f"{link}: {'; '.join(lines)}: {words}; correct control in the seed's YAML")
    code, words = machine.run(("nft", "-f", "-"), opening(link, is_v6).encode())
    if code:
        raise SeedError(f"the packet filter cannot be opened for {link}: {words}; see narthex-closed.service")
    host = address.partition("/")[0]
    if host.lower().startswith("fe80:"):
        host += f"%{link}"
    os.makedirs(machine.root + RUN, exist_ok=True)
    with open(f"{way_in}.new", "w") as file:
        file.write(f"CONTROL={host}\n")
    os.rename(f"{way_in}.new", way_in)
    say(f"the way in is {host} port {PORT} on {link} ({kept.mac})")


def announce(machine: Machine, link: str) -> None:
    """When the link comes up, the kernel tells its address (ip-sysctl, arp_notify): a manager who asks already hears at
    once that it is there, and not with the next of his questions, seconds later."""
    with suppress(OSError), open(f"{machine.root}/proc/sys/net/ipv4/conf/{link}/arp_notify", "w") as file:
        file.write("1")


def opening(link: str, is_v6: bool) -> str:
    """What is added to the drop-all ruleset, as nft's text. IPv6 without neighbour discovery reaches nobody."""
    echo = (
        "icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert }" if is_v6 else "icmp type echo-request"
    )
    rules = (f"tcp dport {PORT} accept", f"{echo} accept")
    return "".join(f'add rule inet narthex input iifname "{link}" {rule}\n' for rule in rules)


def wait_for_link(machine: Machine, mac: str) -> str:
    """The name of the interface with that MAC, when it is there. Raises SeedError with those that are."""
    deadline = machine.now() + LINK_WAIT_S
    while True:
        links = read_links(machine)
        names = [name for name, own in links.items() if own == mac]
        if len(names) == 1:
            return names[0]
        if names:
            raise SeedError(f"{' and '.join(names)} have the MAC {mac} alike; give each interface a MAC of its own")
        if machine.now() >= deadline:
            there = ", ".join(f"{name} {own}" for name, own in links.items()) or "none"
            raise SeedError(
                f"no interface has the control MAC {mac}; there are: {there}; "
                "correct control.mac in the seed's YAML, or the machine's interface"
            )
        machine.sleep(POLL_S)


def read_links(machine: Machine) -> dict[str, str]:
    """name -> MAC of the interfaces that stand on no other: a VLAN has the MAC of its link."""
    base, links = f"{machine.root}/sys/class/net", {}
    for name in sorted(os.listdir(base)):
        with suppress(OSError):  # it may go while we look
            if name != "lo" and not any(entry.startswith("lower_") for entry in os.listdir(f"{base}/{name}")):
                with open(f"{base}/{name}/address") as file:
                    links[name] = file.read().strip()
    return links


# --- trouble


def tell_trouble(machine: Machine, words: str) -> None:
    """Say it where a person will look: every console, the login prompt, /run, the journal."""
    lines = ["".join(c if c.isprintable() else "?" for c in line)[:400] for line in words.splitlines()[:20]]
    say("\n".join(lines))
    text = "\n".join(
        [
            "",
            "*** Narthex: this machine stays closed. Nothing is forwarded, nobody gets in, no agent runs.",
            *(f"***   {line}" for line in lines),
            "*** Put it right and start the machine again. The log: journalctl -u narthex-seed",
            "",
        ]
    )
    # agetty takes a backslash in an issue for the start of an escape
    for path, content in ((TROUBLE, "\n".join([*lines, ""])), (ISSUE, text.replace("\\", "\\\\") + "\n")):
        with suppress(OSError):
            os.makedirs(os.path.dirname(machine.root + path), exist_ok=True)
            with open(machine.root + path, "w") as file:
                file.write(content)
    for console in consoles(machine):
        with suppress(OSError):  # one that is not there
            show(machine, console, text.replace("\n", "\r\n").encode())


def show(machine: Machine, console: str, text: bytes) -> None:
    """Write to a console, for a second at most: one that nobody empties would hold up the boot for ever."""
    deadline = machine.now() + 1.0
    fd = os.open(console, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while text and machine.now() < deadline:
            try:
                text = text[os.write(fd, text) :]
            except BlockingIOError:
                machine.sleep(POLL_S)
    finally:
        os.close(fd)


def consoles(machine: Machine) -> list[str]:
    """The devices of all consoles; the kernel's own /dev/console is but the last of them."""
    try:
        with open(f"{machine.root}/sys/class/tty/console/active") as file:
            return [f"{machine.root}/dev/{name}" for name in file.read().split()]
    except OSError:
        return [f"{machine.root}/dev/console"]


def boot(machine: Machine) -> int:
    """0, or 1 where the machine stays closed."""
    try:
        bring_up(machine)
    except SeedError as error:
        tell_trouble(machine, str(error))
        return 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        tell_trouble(machine, f"{what}; look at the disk: is it full, or broken?")
        return 1
    except Exception as error:  # nobody else would say it where a person can see it
        tell_trouble(machine, f"{type(error).__name__}: {error}; this is a fault of Narthex itself: report it")
        raise
    for path in (TROUBLE, ISSUE):
        with suppress(FileNotFoundError):
            os.unlink(machine.root + path)
    return 0


if __name__ == "__main__":
    sys.exit(boot(this_machine()))
