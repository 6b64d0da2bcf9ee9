"""Source and static NAT in a VM: the very test functions of tests/netns, with the router in the booted image."""

from tests.netns.test_packets_nat import *  # noqa: F403
