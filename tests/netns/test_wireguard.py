"""WireGuard where the kernel has none: the push is undone, and says why. Where it has: tests/vm/test_wireguard.py."""

from __future__ import annotations

import json

import pytest

from tests.bench.vpn import has_wireguard
from tests.netns.calls import tcp
from tests.netns.stage import L10, WEB, Stage, allow, config, forward


def test_without_the_kernels_part_nothing_changes() -> None:
    listener = {
        "_": "wireguard", "id": "road", "address": L10, "private_key": "b" * 42 + "A=", "addresses": ["10.99.0.1/24"],
    }  # fmt: skip
    rules = (allow("a", L10, "tcp", 80), forward("f", L10, 80, WEB))
    with Stage() as stage:
        if has_wireguard(stage.bed):
            pytest.skip("this kernel has WireGuard")
        stage.push(*rules)
        answer = stage.bed.appliance.put(json.dumps(stage.bed.document(config(*rules, listener))).encode())
        assert (answer.status, answer.body["result"], answer.body["object"]) == (500, "undone", "road")
        assert "Unknown device type" in answer.body["evidence"]
        assert stage.bed.appliance.state().body["converged"]
        stage.meets("web", tcp(stage.world, L10, 80))
