"""Gives requests the names of things that exist, so that more than look-ups is reached.

ROOST_NAMES is a JSON object: the beginning of a path, and what stands for each of its parameters there. Requests that
would end or halt what the others need get names of nothing, even where a name was picked up from an earlier answer.
"""

import json
import os
import re

import schemathesis

NAMES = json.loads(os.environ["ROOST_NAMES"])
SPARED = ("/pause", "/stop", "/resume", "/start", "/rotate")
REAL = re.compile(r"[a-z]+_[0-9a-z]{26}|[0-9a-f-]{36}")


def spared(operation):
    verb = operation.method.upper()
    return operation.path.endswith(SPARED) or (verb == "DELETE" and "/env/" not in operation.path)


@schemathesis.hook
def before_call(context, case, kwargs):
    operation = case.operation
    if isinstance(case.body, dict):
        # A sandbox that is soon put to rest by its own timer would make everything else wait for it.
        for timer in ("timeout_sec", "idle_timeout_sec"):
            if isinstance(case.body.get(timer), int) and 0 < case.body[timer] < 3600:
                case.body[timer] += 3600
    known = next((names for start, names in NAMES.items() if operation.path.startswith(start)), {})
    for name, value in (case.path_parameters or {}).items():
        real = isinstance(value, str) and REAL.fullmatch(value)
        # Of what is made up about one in three stays; which is decided by the value, so that a run can be repeated.
        kept = not real and sum(str(value).encode("utf-8", "replace")) % 3 == 0
        if spared(operation):
            case.path_parameters[name] = value[::-1] if real else value
        elif name in known and not kept:
            case.path_parameters[name] = known[name]
        elif real:
            case.path_parameters[name] = value[::-1]
