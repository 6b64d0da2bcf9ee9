"""Benchmarks: figures beside their floors, measured in one run. `./narthex bench ROOM`; `./narthex test` runs none of them."""
