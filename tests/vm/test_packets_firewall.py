"""The firewall in a VM: the very test functions of tests/netns, with the router in the booted image."""

from tests.netns.test_packets_firewall import *  # noqa: F403
