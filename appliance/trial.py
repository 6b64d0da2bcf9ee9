"""A release tried on the machine as it is, before it is switched to: `python -m appliance.trial`, by its own code.

It imports all that the agent imports, reads the settings and the journal, makes the engine that the agent would start,
and compiles the document that was kept last. It writes nothing and touches nothing. On standard output: a JSON object
{"version", "role", "generation", "digest", "lines"}, the machine in the words of GET /v1/state?view=machine; or, with
exit status 1, {"error": what is wrong}. An older agent reads it: what it says may grow, and nothing of it may change.
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from typing import Any


def tried() -> dict[str, Any]:
    from appliance import roles, settings
    from appliance.__main__ import make_engine
    from appliance.log import Log
    from appliance.metrics import Metrics
    from appliance.plan import lines
    from appliance.version import VERSION

    facts = settings.load()
    engine = make_engine(facts, roles.load(facts.role), Log(), Metrics(), writes=False)
    head = engine.store.head()
    number = head.generation if head else 0
    told = list(lines(engine.state_of(number)))
    digest = sha256("\n".join(told).encode()).hexdigest()
    return {"version": VERSION, "role": facts.role, "generation": number, "digest": digest, "lines": told}


def main() -> int:
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever a module prints while it is imported is no part of the answer
    try:
        told, code = tried(), 0
    except Exception as error:  # whatever it is, it is why this release is not taken
        told, code = {"error": f"{type(error).__name__}: {error}"}, 1
    with open(answer, "w") as out:
        json.dump(told, out)
    return code


if __name__ == "__main__":
    sys.exit(main())
