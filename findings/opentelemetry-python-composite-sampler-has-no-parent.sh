#!/usr/bin/env bash
# OpenTelemetry's composite samplers: Python's never see the parent's tracestate, JavaScript's do.
#
# Guess: the composite samplers of both SDKs follow the specification of consistent sampling. A
# service that gets `ot=rv:...` in tracestate decides by that random value, keeps the other vendors'
# entries, and a child takes the threshold `ot=th:...` of its parent. Seen, with opentelemetry-sdk
# 1.45.2 (PyPI, experimental module) and @opentelemetry/sampler-composite 0.222.0 with
# sdk-trace-base 2.12.1 (npm): thresholds and, without a parent's tracestate, decisions are the
# same. With one JavaScript does as guessed. Python's samplers can read it too, but the tracer does
# not hand it over: the random value is ignored, so that the two services keep different spans of
# one trace; a child of a kept parent that carries th:8 keeps its span without a threshold, so that
# nobody can weigh it; and the entries of other vendors are gone from the span, and from what the
# service sends on.
#
# What follows: a span is no evidence of the share that was kept, and a tracestate entry that passed
# through a Python service is no place for a decision's id or propensity.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check opentelemetry-sdk==1.45.2 opentelemetry-api==1.45.2
npm install --silent --no-audit --no-fund @opentelemetry/api@1.9.1 @opentelemetry/core@2.12.1 \
    @opentelemetry/sdk-trace-base@2.12.1 @opentelemetry/sampler-composite@0.222.0 >/dev/null

cat >cases.json <<'JSON'
[["half", "11111111111111110000000000000001", ""],
 ["half", "1111111111111111ffffffffffffffff", ""],
 ["third", "1111111111111111ffffffffffffffff", ""],
 ["half", "1111111111111111ffffffffffffffff", "router=gpt-small"],
 ["half", "11111111111111110000000000000001", "ot=rv:fffffffffffff0"],
 ["half", "1111111111111111ffffffffffffffff", "ot=rv:00000000000001"],
 ["parent", "1111111111111111ffffffffffffffff", "ot=th:8"]]
JSON

cat >sample.py <<'PYTHON'
import json

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace._sampling_experimental import (
    composable_parent_threshold,
    composable_traceid_ratio_based,
    composite_sampler,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

HALF = composable_traceid_ratio_based(0.5)
SAMPLERS = {
    "half": HALF,
    "third": composable_traceid_ratio_based(1 / 3),
    "parent": composable_parent_threshold(HALF),
}
for sampler, trace_id, state in json.load(open("cases.json")):
    tracer = TracerProvider(sampler=composite_sampler(SAMPLERS[sampler])).get_tracer("seen")
    parent = SpanContext(
        int(trace_id, 16), 1, True, TraceFlags(1), TraceState([tuple(state.split("=", 1))] if state else [])
    )
    span = tracer.start_span("a", trace.set_span_in_context(NonRecordingSpan(parent))).get_span_context()
    kept = "kept" if span.trace_flags.sampled else "dropped"
    print(f"{sampler} {trace_id[-1]} [{state}]: {kept} [{span.trace_state.to_header()}]")
PYTHON

cat >sample.js <<'JAVASCRIPT'
const { ROOT_CONTEXT, trace } = require("@opentelemetry/api");
const { TraceState } = require("@opentelemetry/core");
const { BasicTracerProvider } = require("@opentelemetry/sdk-trace-base");
const composite = require("@opentelemetry/sampler-composite");
const half = composite.createComposableProbabilitySampler(0.5);
const samplers = {
  half,
  third: composite.createComposableProbabilitySampler(1 / 3),
  parent: composite.createComposableParentThresholdSampler(half),
};
for (const [sampler, traceId, state] of require("./cases.json")) {
  const provider = new BasicTracerProvider({ sampler: composite.createCompositeSampler(samplers[sampler]) });
  const parent = trace.setSpanContext(ROOT_CONTEXT, {
    traceId, spanId: "0000000000000001", traceFlags: 1, isRemote: true,
    traceState: state ? new TraceState(state) : undefined,
  });
  const span = provider.getTracer("seen").startSpan("a", {}, parent).spanContext();
  const kept = span.traceFlags & 1 ? "kept" : "dropped";
  console.log(`${sampler} ${traceId.slice(-1)} [${state}]: ${kept} [${span.traceState?.serialize() ?? ""}]`);
}
JAVASCRIPT

{
    echo "Python"
    venv/bin/python sample.py
    echo "JavaScript"
    node sample.js
} | tee seen
diff seen - <<'SEEN' || { echo "this has changed"; exit 1; }
Python
half 1 []: dropped []
half f []: kept [ot=th:8]
third f []: kept [ot=th:aaaaaaaaaaaaac]
half f [router=gpt-small]: kept [ot=th:8]
half 1 [ot=rv:fffffffffffff0]: dropped []
half f [ot=rv:00000000000001]: kept [ot=th:8]
parent f [ot=th:8]: kept []
JavaScript
half 1 []: dropped []
half f []: kept [ot=th:8]
third f []: kept [ot=th:aaaaaaaaaaaaac]
half f [router=gpt-small]: kept [ot=th:8,router=gpt-small]
half 1 [ot=rv:fffffffffffff0]: kept [ot=th:8;rv:fffffffffffff0]
half f [ot=rv:00000000000001]: dropped [ot=rv:00000000000001]
parent f [ot=th:8]: kept [ot=th:8]
SEEN
