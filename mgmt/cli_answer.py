"""Answers that are not good, as Failures: an exit code that means something, the places, and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mgmt.terminal import REFUSED, STALE, UNDONE, UNEXPECTED, Failure

if TYPE_CHECKING:
    from mgmt.push import Answer

EXIT_CODES = """\b
Exit codes:
  0  applied, unchanged, or answered
  1  something unexpected; the message says what
  2  the command line or the file is wrong; nothing was sent
  3  refused (422): the document or the question; nothing was touched
  4  stale (409, 412): another push came first, or the plan is not the one demanded
  5  undone (500): a step failed and the router is what it was before
  6  the router cannot be reached, or is not the one that it should be
"""


def good(answer: Answer) -> Answer:
    """The answer itself where it is good. Raises Failure with its exit code, the places and the remedy."""
    if answer.good:
        return answer
    told: dict[str, Any] = answer.body if isinstance(answer.body, dict) else {"error": str(answer.body)}
    words = str(told.get("error", f"the router answered {answer.status}"))
    places = [(p["path"], p["message"]) for p in told.get("problems", ())]
    if answer.status in (409, 412):
        remedy = "See what it is now: narthex router state. Push again with --next, or ask for the plan anew."
        raise Failure(words, STALE, remedy, told)
    if answer.status == 500 and str(told.get("result", "")).startswith("und"):
        raise _undone(words, told)
    if answer.status in (403, 404, 422):
        remedy = "Correct each place, then push again." if places else ""
        raise Failure(words, REFUSED, remedy, told, places)
    remedy = "Nothing was touched." if told.get("result") == "nothing touched" else "See: narthex cell logs"
    raise Failure(words, UNEXPECTED, remedy, told)


def _undone(words: str, told: Mapping[str, Any]) -> Failure:
    places: list[tuple[str, str]] = [("step", str(told.get("step", "")))]
    if told.get("object"):
        places.append(("object", str(told["object"])))
    evidence = told.get("evidence")
    if evidence:
        places.append(("evidence", evidence if isinstance(evidence, str) else json.dumps(evidence, default=str)))
    if told.get("broken"):
        places.append(("broken", str(told["broken"])))
        return Failure(f"{words}; the undo failed too", UNDONE, "See: narthex cell logs", told, places)
    remedy = f"The router is generation {told.get('current')} as before."
    return Failure(f"undone: {words}", UNDONE, remedy, told, places)
