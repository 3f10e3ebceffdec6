"""Runs where the OpenFeature SDK is installed: evaluates a plan of requests, writes what it got.

    ofrep_python.py PLAN OUT URL stock|ours|ours-unheard SECONDS [TOKEN]

A line of the plan is a request, with the reward and the seconds that each model would give. `ours`
is the copied provider that tracks; it stands beside a copied client, and delivers before it ends.
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


def main(plan: str, out: str, url: str, kind: str, seconds: str, token: str = "") -> None:
    requests = [json.loads(line) for line in Path(plan).read_text().splitlines()]
    if kind != "stock":
        from equipoise_openfeature import EquipoiseProvider

        provider = EquipoiseProvider(url, token or None, timeout=float(seconds))
    else:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        provider = OFREPProvider(url, headers_factory=lambda: headers, timeout=float(seconds))
    api.set_provider(provider)
    flags = api.get_client()
    rows = []
    for request in requests:
        attributes = {
            "request_id": request["request_id"],
            "routed": request["routed"],
            "words": request["words"],
            "plan": "free",  # an attribute that is no feature
        }
        context = EvaluationContext(request["unit"], attributes)
        started = time.perf_counter()
        details = flags.get_string_details("chat", "large", context)
        took = time.perf_counter() - started
        if kind != "stock":
            model = details.value
            outputs = {"outputs": {"seconds": request["seconds"][model]}}
            flags.track("exposure", context, TrackingEventDetails(attributes=outputs))
            flags.track("outcome", context, TrackingEventDetails(request["rewards"][model]))
            flags.track("page-seen", context)
            stranger = EvaluationContext("somebody-else", attributes)
            flags.track("outcome", stranger, TrackingEventDetails(0.0))
        row = {
            "request_id": request["request_id"],
            "value": details.value,
            "variant": details.variant,
            "reason": details.reason,
            "error": details.error_code and f"{details.error_code}: {details.error_message}",
            "metadata": dict(details.flag_metadata),
            "seconds": took,
        }
        rows.append(json.dumps(row) + "\n")
    Path(out).write_text("".join(rows))
    if kind == "ours":
        client = provider.outcomes.client
        assert client.flush(30.0)
        counted = {"delivered": client.counters.delivered, "refused": client.counters.refused}
        print(json.dumps({"events": provider.outcomes.counters, **counted}))
        api.shutdown()


main(*sys.argv[1:])
