"""The firewall in a VM: the very test functions of tests/netns, with the router in the booted image."""

from tests.netns.test_packets_firewall import *  # noqa: F403

# How much a set may hold is the same in a cell; emulated, a document of 5,000 sources takes minutes.
del test_five_thousand_sources_are_one_set  # noqa: F821
