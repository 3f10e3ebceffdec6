"""Runs where the OpenFeature SDK is installed: evaluates a plan of requests, writes what it got.

    ofrep_python.py PLAN OUT URL stock|ours [TOKEN]

A line of the plan is a request, with the reward and the seconds that each model would give. `ours`
is the copied provider that tracks; it stands beside a copied client.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.track import TrackingEventDetails

FLAG, DEFAULT = "chat", "large"


def main(plan: str, out: str, url: str, kind: str, token: str = "") -> None:
    requests = [json.loads(line) for line in Path(plan).read_text().splitlines()]
    if kind == "ours":
        from equipoise_openfeature import EquipoiseProvider

        provider = EquipoiseProvider(url, token or None, timeout=5.0)
    else:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        provider = OFREPProvider(url, headers_factory=lambda: headers, timeout=5.0)
    api.set_provider(provider)
    flags = api.get_client()
    with open(out, "w") as lines:
        for request in requests:
            attributes = {
                "request_id": request["request_id"],
                "routed": request["routed"],
                "words": request["words"],
                "plan": "free",  # an attribute that is no feature
            }
            context = EvaluationContext(request["unit"], attributes)
            started = time.perf_counter()
            details = flags.get_string_details(FLAG, DEFAULT, context)
            seconds = time.perf_counter() - started
            if kind == "ours":
                model = details.value
                outputs = {"outputs": {"seconds": request["seconds"][model]}}
                flags.track("exposure", context, TrackingEventDetails(attributes=outputs))
                flags.track("outcome", context, TrackingEventDetails(request["rewards"][model]))
                flags.track("page-seen", context)
            row = {
                "request_id": request["request_id"],
                "value": details.value,
                "variant": details.variant,
                "reason": details.reason,
                "error": details.error_code and f"{details.error_code}: {details.error_message}",
                "metadata": dict(details.flag_metadata),
                "seconds": seconds,
            }
            lines.write(json.dumps(row) + "\n")
    if kind == "ours":
        assert provider.outcomes.client.flush(30.0)
        summary = {"events": provider.outcomes.counters, "client": vars_of(provider)}
        print(json.dumps(summary))
    api.shutdown()


def vars_of(provider) -> dict:
    counters = provider.outcomes.client.counters
    return {"delivered": counters.delivered, "refused": counters.refused}


main(*sys.argv[1:])
