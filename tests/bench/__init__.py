"""Benchmarks: figures beside their floors, measured in one run. `./narthex bench ROOM`; no part of the tests."""
