"""Start the agent: settings, role, host, engine, watch, server. `python -m appliance`."""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path
from types import FrameType

from appliance import roles, settings
from appliance.api import create_app
from appliance.engine import Engine
from appliance.health import Health, Rounds
from appliance.host import LinuxHost
from appliance.log import Log
from appliance.memory import keep_small
from appliance.metrics import Metrics
from appliance.notify import Heart, notify
from appliance.release import Releases
from appliance.server import serve
from appliance.store import Store
from appliance.systemd import SystemdRunner
from appliance.units import SupervisorRunner
from appliance.upgrade import Upgrade
from appliance.watch import Watch


def make_engine(facts: settings.Settings, role: roles.Role, log: Log, metrics: Metrics, writes: bool = True) -> Engine:
    """The engine of this machine; one that is to be looked at alone does not write."""
    runner = SystemdRunner() if facts.runner == "systemd" else SupervisorRunner(f"{facts.run_dir}/supervisor.sock")
    store = Store(Path(facts.state_dir) / "store", writes)
    return Engine(role, LinuxHost(facts, runner, metrics), store, facts, log, metrics)


def main() -> int:
    keep_small()
    log, metrics = Log(), Metrics()
    try:
        facts = settings.load()
        role = roles.load(facts.role)
    except (settings.SettingsError, LookupError) as error:
        log.error("settings", error=str(error))
        return 2
    Path(facts.run_dir).mkdir(parents=True, exist_ok=True)
    engine = make_engine(facts, role, log, metrics)
    engine.start()
    upgrade = Upgrade(engine, Releases(), log)
    watch = Watch(engine, log, facts.watch_seconds)
    watch.start()
    health = Health(engine, log, metrics)
    Rounds(health).start()
    heart = Heart(engine, log)
    server = serve(create_app(engine, metrics, upgrade, health), Path(facts.socket), heart.turned)

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    gc.collect()
    gc.freeze()  # what was imported lives as long as the agent: the collector need not walk it
    gc.set_threshold(
        100_000, 50, 50
    )  # a document of 10,000 objects is no reason to walk it forty times while it is read
    notify(f"READY=1\nSTATUS=generation {engine.current.number}, {engine.broken or 'converged'}")
    heart.start()
    upgrade.ready()
    log.info("ready", generation=engine.current.number, role=facts.role, name=facts.name)
    try:
        server.run()
    finally:
        engine.count()
    return 0


if __name__ == "__main__":
    sys.exit(main())
