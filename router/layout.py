"""Layout: the templates of configuration files, filled.

Values have narrow alphabets in the models, so nothing is escaped here; what a template names and we don't give is
an error, never an empty place.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Path(__file__).with_name("templates")


def fill(template: str, **values: object) -> str:
    """The text of templates/<template>.j2 with these values in it."""
    return _environment().get_template(f"{template}.j2").render(values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
