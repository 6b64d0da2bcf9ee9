"""The agent's log: JSON lines on standard error, each with the generation it speaks of where there is one."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any, TextIO

from appliance.values import Secret


def _shown(value: Any) -> Any:
    """A field without its secrets, however deep they lie: json would write the text of one."""
    if isinstance(value, Secret):
        return str(value)
    if isinstance(value, dict):
        return {key: _shown(inner) for key, inner in value.items()}
    return [_shown(inner) for inner in value] if isinstance(value, list | tuple) else value


class Log:
    """Writes one JSON object a line: at (RFC 3339), level, event, and the fields given."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        now = time.time()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = json.dumps({"at": at, "level": level, "event": event, **_shown(fields)}, default=str)
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except OSError:
                pass  # a full disk must not stop a router
