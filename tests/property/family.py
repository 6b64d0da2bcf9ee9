"""A document as one address family sees it: what the other has is left out. For legacy.py: an engine for each.

In the view of IPv6 a network's `cidr` is its prefix, and its `source_nat`, which translates nothing there, an address
of the uplink that it leaves by.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from appliance.values import is_v6
from router.config import Acl, AclItem, Config, EgressRule, Firewall, IngressRule, Interface, Network

Judged = TypeVar("Judged", Firewall, EgressRule, IngressRule, AclItem)


def of_family(config: Config, v6: bool) -> Config:
    """The document with its addresses of that family alone. It need not pass the checks any more."""
    networks = [network_of(config, n) for n in config.networks if n.cidr6] if v6 else list(config.networks)
    known = {n.id for n in networks}
    return config.model_copy(
        update={
            "interfaces": tuple(interface_of(i, v6) for i in config.interfaces),
            "networks": tuple(networks),
            "forwards": () if v6 else config.forwards,
            "static_nats": () if v6 else config.static_nats,
            "firewall": tuple(fitting((r for r in config.firewall if is_v6(r.address) is v6), v6)),
            "egress": tuple(fitting((r for r in config.egress if r.network in known), v6)),
            "ingress": tuple(fitting((r for r in config.ingress if r.network in known), v6)),
            "acls": tuple(acl_of(acl, v6) for acl in config.acls),
            "routes": tuple(r for r in config.routes if is_v6(r.via) is v6),
        }
    )


def interface_of(interface: Interface, v6: bool) -> Interface:
    addresses = tuple(a for a in interface.addresses if is_v6(a) is v6)
    gateway = interface.gateway6 if v6 else interface.gateway
    return interface.model_copy(update={"addresses": addresses, "gateway": gateway})


def network_of(config: Config, network: Network) -> Network:
    publics = [i for i in config.interfaces if i.use == "public"]
    in_v4 = next((i for i in publics if network.source_nat in own(i)), publics[0] if publics else None)
    leaves_by = in_v4 if in_v4 and in_v4.gateway6 else next((i for i in publics if i.gateway6), None)
    address = next((a for a in own(leaves_by) if is_v6(a)), None) if leaves_by else None
    return network.model_copy(update={"cidr": network.cidr6, "routed": True, "source_nat": address})


def own(interface: Interface) -> list[str]:
    return [a.partition("/")[0] for a in interface.addresses]


def acl_of(acl: Acl, v6: bool) -> Acl:
    return acl.model_copy(update={s: tuple(fitting(getattr(acl, s), v6)) for s in ("ingress", "egress")})


def fitting(rules: Iterable[Judged], v6: bool) -> list[Judged]:
    """The rules that can fit a packet of the family, each with its CIDRs of that family."""
    found = []
    for rule in rules:
        lists = {name: getattr(rule, name) for name in ("sources", "destinations", "cidrs") if hasattr(rule, name)}
        here = {name: tuple(c for c in cidrs if is_v6(c) is v6) for name, cidrs in lists.items()}
        of_another = rule.icmp_type is not None and rule.protocol != ("icmpv6" if v6 else "icmp")
        if not of_another and all(here[name] or not lists[name] for name in lists):
            found.append(rule.model_copy(update=here))
    return found
