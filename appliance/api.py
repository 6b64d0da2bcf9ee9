"""The agent's API as a Flask app: thin. Every answer is JSON but the metrics'; see docs/design.md 4."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from appliance.document import VERSION as DOCUMENT_VERSION
from appliance.document import DocumentError, check_size, parse
from appliance.engine import Answer, Engine, refusal
from appliance.health import Health
from appliance.metrics import Metrics, resident
from appliance.plan import diff, lines
from appliance.upgrade import Upgrade
from appliance.version import VERSION


def create_app(engine: Engine, metrics: Metrics, upgrade: Upgrade, health: Health) -> Flask:
    """The app over one engine. `environ["narthex.connection"]` names the connection that a request came by."""
    app = Flask("narthex", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]

    def connection() -> str:
        return str(request.environ.get("narthex.connection", ""))

    def document() -> bytes:
        check_size(request.content_length or 0)  # before it is in memory: the server takes what a release may have
        return request.get_data(cache=False)

    def pushed(push: Callable[[], Answer]) -> Response:
        with engine.lock:
            return _json(upgrade.blocks() or push())

    @app.put("/v1/config")
    def put_config() -> Response:
        body = document()
        return pushed(lambda: engine.put(body, connection()))

    @app.patch("/v1/config")
    def patch_config() -> Response:
        body = document()
        return pushed(lambda: engine.patch(body, connection()))

    @app.get("/v1/config")
    def get_config() -> Response:
        with engine.lock:
            body = engine.document(engine.current.number) if engine.current.config else b"null"
        return Response(body, mimetype="application/json")

    @app.post("/v1/plan")
    def post_plan() -> Response:
        return _json(engine.plan(document()))

    @app.post("/v1/config/<int:number>/confirm")
    def confirm(number: int) -> Response:
        return _json(engine.confirm(number, connection()))

    @app.post("/v1/rollback/<int:number>")
    def rollback(number: int) -> Response:
        return pushed(lambda: engine.rollback(number, connection()))

    @app.get("/v1/state")
    def state() -> Response:
        return _json(Answer(200, _state(engine, request.args.get("view", ""))))

    @app.get("/v1/generations")
    def generations() -> Response:
        with engine.lock:
            records = [_record(engine, n) for n in sorted(engine.store.records)]
        return _json(Answer(200, {"current": engine.current.number, "generations": records}))

    @app.get("/v1/generations/<int:number>")
    def generation(number: int) -> Response:
        return _json(_generation(engine, number, request.args.get("against", type=int)))

    @app.get("/v1/trace")
    def trace() -> Response:
        return _json(engine.trace(request.args.to_dict()))

    @app.get("/v1/flows")
    def flows() -> Response:
        return _json(engine.flows(request.args.to_dict()))

    @app.get("/v1/health")
    def get_health() -> Response:
        if "now" in request.args:
            health.look()
        told = _health(engine) | health.told()
        return _json(Answer(200 if told["healthy"] else 503, told))

    @app.get("/v1/usage")
    def usage() -> Response:
        told = {"resident_bytes": resident(), "links": engine.host.counters()}
        with engine.lock:
            engine.count()
            return _json(Answer(200, {**told, "usage": engine.usage.told()}))

    @app.get("/v1/version")
    def version() -> Response:
        told = {"narthex": VERSION, "document": DOCUMENT_VERSION, "role": engine.settings.role}
        return _json(Answer(200, {**told, **upgrade.told()}))

    @app.put("/v1/release")
    def put_release() -> Response:
        size = request.content_length or 0
        return _json(upgrade.put(request.stream, size, request.args, connection()))

    @app.post("/v1/release/confirm")
    def confirm_release() -> Response:
        return _json(upgrade.confirm(request.args.get("release", ""), connection()))

    @app.post("/v1/release/return")
    def return_release() -> Response:
        return _json(upgrade.give_back(request.args, connection()))

    @app.post("/v1/diagnostics")
    def diagnostics() -> Response:
        from appliance.diagnostics import DiagnosticsError, diagnose  # many models, and most agents are never asked

        try:
            return _json(Answer(200, diagnose(engine.host, parse(document()), engine.current.state)))
        except (DiagnosticsError, DocumentError) as error:
            return _json(Answer(422, {"error": str(error)}))

    @app.get("/v1/support")
    def support() -> Response:
        from appliance.support import bundle  # most agents are never asked for one

        return Response(bundle(engine, health, metrics), mimetype="application/gzip")

    @app.get("/metrics")
    def text() -> Response:
        engine.examine()
        metrics.set("narthex_converged", 0 if engine.broken else 1)
        metrics.set("narthex_awaiting_confirmation", 1 if engine.awaiting else 0)
        with engine.lock:
            engine.count()
            usage = engine.usage.text()
        return Response(metrics.text() + usage, mimetype="text/plain; version=0.0.4")

    @app.errorhandler(HTTPException)
    def unknown(error: HTTPException) -> Response:
        return _json(Answer(error.code or 500, {"error": f"{request.method} {request.path}: {error.name.lower()}"}))

    @app.errorhandler(DocumentError)
    def refused(error: DocumentError) -> Response:
        return _json(refusal(error))

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        engine.log.error("request", path=request.path, error=f"{type(error).__name__}: {error}")
        return _json(Answer(500, {"error": f"{type(error).__name__}: {error}", "result": "see the agent's log"}))

    return app


def _json(answer: Answer) -> Response:
    return Response(json.dumps(answer.body, default=str) + "\n", answer.status, mimetype="application/json")


def _state(engine: Engine, view: str) -> dict[str, Any]:
    with engine.lock:
        current, waiting = engine.current, engine.awaiting
        told: dict[str, Any] = {
            "name": engine.settings.name,
            "role": engine.settings.role,
            "generation": current.number,
            "digest": current.digest,
            "converged": not engine.broken,
            "broken": engine.broken,
            "refused": [f"{p['path']}: {p['message']}" for p in engine.current.refused],
            "awaiting": {"generation": waiting.generation.number, "deadline": waiting.deadline} if waiting else None,
            "drift": [_drift(d) for d in engine.drifts[-10:]],
        }
        if view == "machine":
            told["lines"] = list(lines(current.state))
        elif view == "document" and current.config is not None:
            told["document"] = json.loads(engine.document(current.number))
        return told


def _drift(drift: Any) -> dict[str, Any]:
    return {"at": drift.at, "reason": drift.reason, "healed": drift.healed, "by": drift.by, "steps": drift.steps[:20]}


def _record(engine: Engine, number: int) -> dict[str, Any]:
    r = engine.store.records[number]
    return {
        "generation": r.generation, "at": r.at, "kind": r.kind, "status": r.status, "why": r.why,
        "steps": len(r.plan), "milliseconds": round(sum(r.timings.values()), 1), "digest": r.digest,
    }  # fmt: skip


def _generation(engine: Engine, number: int, against: int | None) -> Answer:
    with engine.lock:
        if number not in engine.store.records:
            return Answer(404, {"error": f"generation {number} is not kept", "current": engine.current.number})
        told = _record(engine, number)
        record = engine.store.records[number]
        told["plan"], told["timings"] = record.plan, record.timings
        try:
            if against is not None:
                told["against"] = against
                told["diff"] = diff(engine.state_of(against), engine.state_of(number))
            else:
                told["document"] = json.loads(engine.document(number))
        except (LookupError, OSError, DocumentError) as error:
            words = f"generation {number} is not kept whole any more: {error}"
            return Answer(404, {"error": words, "current": engine.current.number})
        return Answer(200, told)


def _health(engine: Engine) -> dict[str, Any]:
    with engine.lock:
        recent, troubles = [d for d in engine.drifts if not d.healed], engine.examine()
        return {
            "healthy": not (
                engine.broken or engine.current.refused or engine.legacy or any(trouble.grave for trouble in troubles)
            ),
            "generation": engine.current.number,
            "broken": engine.broken,
            "refused": [f"{p['path']}: {p['message']}" for p in engine.current.refused],
            "awaiting": engine.awaiting is not None,
            "drift": {"healed": len(engine.drifts) - len(recent), "reported": len(recent)},
            "legacy": engine.legacy,
            "troubles": [asdict(trouble) for trouble in troubles],
        }
