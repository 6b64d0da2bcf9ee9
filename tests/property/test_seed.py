"""Whatever a person puts into a seed comes out of it as it went in, and the early reader still finds its part."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from appliance.seedtext import read_seed
from mgmt.keys import make_key
from mgmt.seed import config_drive, no_cloud, read_seed_file

KEY = make_key()
MARKS = (
    "\n",
    "\n\n",
    "\r",
    "  ",
    "- ",
    "#",
    ": ",
    "{{",
    "}}",
    "{%",
    "'",
    '"',
    "\t",
    "|",
    "\\",
    "write_files:",
    "é",
    "😀",
)
PLAIN = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufeff\ufffe\uffff")
TEXTS = st.text(PLAIN, min_size=1) | st.lists(st.sampled_from(MARKS), min_size=1, max_size=12).map("".join)


@given(content=TEXTS, command=TEXTS, words=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_persons_own_part_comes_out_as_it_went_in(content: str, command: str, words: list[str]) -> None:
    told: dict[str, Any] = {
        "name": "r-1", "role": "router", "manager_key": KEY.public, "host_key": KEY.private,
        "control": {"mac": "52:54:00:12:34:56", "address": "169.254.2.10/24"},
        "user_data": {"write_files": [{"path": "/x", "content": content}], "runcmd": [command, words]},
    }  # fmt: skip
    seed = read_seed_file(told)
    births = [read_seed("nocloud", "cd", no_cloud(seed)), read_seed("configdrive", "cd", config_drive(seed))]
    for birth in births:
        assert birth.files["host_key"] == KEY.private
        assert birth.settings.name == "r-1"
    user = yaml.safe_load(no_cloud(seed)["user-data"])
    assert user["write_files"][3:] == [{"path": "/x", "content": content}]
    assert user["runcmd"] == [command, words]
    assert user.keys() == {"hostname", "users", "write_files", "runcmd"}
