"""What the agent counts, in Prometheus' text format (exposition format 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

_HELP = {
    "narthex_pushes_total": ("counter", "Pushes by HTTP status."),
    "narthex_push_seconds_sum": ("counter", "Seconds spent in pushes."),
    "narthex_undone_total": ("counter", "Pushes undone."),
    "narthex_drift_total": ("counter", "Differences found that nobody pushed, by what was done."),
    "narthex_processes_total": ("counter", "Processes started by the agent, by tool."),
    "narthex_generation": ("gauge", "The generation the machine is at."),
    "narthex_awaiting_confirmation": ("gauge", "1 while a generation waits for its confirmation."),
    "narthex_converged": ("gauge", "1 when the machine is its generation as far as is known."),
    "narthex_troubles": ("gauge", "What is wrong with disks, memory and clock: how many things."),
    "narthex_disk_free_bytes": ("gauge", "Free for anybody on the disk that holds a folder."),
    "narthex_memory_available_bytes": ("gauge", "What programs could still have, without swapping."),
    "narthex_clock_kept": ("gauge", "1 where NTP keeps the clock."),
    "narthex_check_ok": ("gauge", "1 where a check of health holds, by its kind, object and target."),
    "narthex_report": ("gauge", "1 with a daemon's own words, by the file that it writes them to."),
    "narthex_check_since_seconds": ("gauge", "When a check became what it is, in seconds since 1970."),
    "narthex_checks_failing": ("gauge", "Checks of health that do not hold."),
    "narthex_certificate_days": ("gauge", "Days until a certificate ends."),
    "narthex_resident_bytes": ("gauge", "Resident memory of the agent."),
}
# Without anything to say they say nothing: a bare 0 would be an alarm.
_BY_LABEL = frozenset({"narthex_check_ok", "narthex_report", "narthex_check_since_seconds", "narthex_certificate_days"})


class Metrics:
    """Counters and gauges by name and label; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, labels: str = "", amount: float = 1) -> None:
        with self._lock:
            self._values[name, labels] += amount  # type: ignore[assignment]

    def set(self, name: str, value: float, labels: str = "") -> None:
        with self._lock:
            self._values[name, labels] = value  # type: ignore[assignment]

    def replace(self, name: str, values: Mapping[str, float]) -> None:
        """All values of a gauge anew, by their labels: what is not among them is gone."""
        with self._lock:
            for key in [key for key in self._values if key[0] == name]:
                del self._values[key]
            self._values.update({(name, labels): value for labels, value in values.items()})

    def get(self, name: str, labels: str = "") -> float:
        with self._lock:
            return self._values[name, labels]

    def pushed(self, status: int, seconds: float) -> None:
        self.add("narthex_pushes_total", f'status="{status}"')
        self.add("narthex_push_seconds_sum", amount=seconds)

    def undone(self) -> None:
        self.add("narthex_undone_total")

    def drifted(self, healed: bool) -> None:
        self.add("narthex_drift_total", f'done="{"healed" if healed else "reported"}"')

    def process(self, tool: str) -> None:
        self.add("narthex_processes_total", f'tool="{tool}"')

    def generation(self, number: int) -> None:
        self.set("narthex_generation", number)

    def text(self) -> str:
        """All of it as Prometheus reads it."""
        self.set("narthex_resident_bytes", resident())
        with self._lock:
            values = dict(self._values)
        lines: list[str] = []
        for name, (kind, words) in _HELP.items():
            lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
            found = {labels: v for (n, labels), v in values.items() if n == name}
            for labels, value in sorted(found.items()) or ([] if name in _BY_LABEL else [("", 0)]):
                lines.append(f"{name}{'{' + labels + '}' if labels else ''} {value:.15g}")
        return "\n".join(lines) + "\n"


def resident() -> int:
    """Resident memory of this process in bytes (proc(5), statm)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096
