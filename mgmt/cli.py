"""The command line: `narthex NOUN COMMAND`. The nouns are in the files cli_NOUN.py.

The launcher keeps `demo`, `test`, `soak` and `bench` for itself. Shell completion is click's own (docs/cell.md).
"""

from __future__ import annotations

import click

from mgmt.cli_appliance import appliance
from mgmt.cli_cell import cell
from mgmt.cli_image import image
from mgmt.cli_router import router
from mgmt.cli_seed import seed
from mgmt.cli_vpn import vpn


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def narthex() -> None:
    """Narthex: virtual routers for virtual machines. (demo, test, soak and bench: see `narthex --help`.)"""


narthex.add_command(router)
narthex.add_command(cell)
narthex.add_command(seed)
narthex.add_command(image)
narthex.add_command(appliance)
narthex.add_command(vpn)


def main() -> None:
    narthex(prog_name="narthex")


if __name__ == "__main__":
    main()
