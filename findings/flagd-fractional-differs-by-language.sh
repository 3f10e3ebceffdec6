#!/usr/bin/env bash
# flagd's `fractional`: Python's evaluator 2.0.0 and JavaScript's 4.0.1 assign by different hashes.
#
# Guess: OpenFeature's flagd evaluators run one rule alike in every language, so a Python router and
# a Node front end that read the same flag file give a user the same model. Seen, with
# openfeature-flagd-core 1.0.0 and 2.0.0 (PyPI) and @openfeature/flagd-core 1.3.0 and 4.0.1 (npm),
# on a rule of two equal shares and 2,000 targeting keys: Python 1.0.0 agrees with JavaScript 4.0.1
# on every key. Python 2.0.0 hashes the CBOR form of the key and not the text itself, and agrees
# with either on about half of them, which is chance; so does JavaScript 1.3.0. Each of them is
# split evenly, so the shares look right. A rule on a number of the context is hashed by Python
# 2.0.0 alone; the other three give the default variant to everybody, without an error.
#
# What follows: an assignment that has to be the same in two places is made in one and passed on,
# and the propensity with it. An upgrade of the evaluator begins a new era: half of the users change
# models, and units that were sticky are mixed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 1.0.0 2.0.0; do
    python3 -m venv "py$version"
    "py$version/bin/pip" install -q --disable-pip-version-check \
        "openfeature-flagd-core==$version" openfeature-flagd-api==1.0.0 openfeature-sdk==0.10.0 \
        mmh3==5.3.1 panzi-json-logic==1.0.1
done
for version in 1.3.0 4.0.1; do
    mkdir "js$version"
    npm install --prefix "js$version" --silent --no-audit --no-fund \
        "@openfeature/flagd-core@$version" @openfeature/core@1.12.0 >/dev/null
done

cat >flags.json <<'JSON'
{"flags": {
  "by-key": {"state": "ENABLED", "variants": {"small": "small", "large": "large", "none": "none"},
    "defaultVariant": "none", "targeting": {"fractional": [["small", 1], ["large", 1]]}},
  "by-number": {"state": "ENABLED", "variants": {"small": "small", "large": "large", "none": "none"},
    "defaultVariant": "none",
    "targeting": {"fractional": [{"var": "account"}, ["small", 1], ["large", 1]]}}
}}
JSON

cat >assign.py <<'PYTHON'
import json
import sys

from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

core = FlagdCore()
core.set_flags(open("flags.json").read())
json.dump(
    {
        flag: [
            core.resolve_string_value(flag, "", EvaluationContext(f"user-{i}", {"account": i})).value
            for i in range(2000)
        ]
        for flag in ("by-key", "by-number")
    },
    open(sys.argv[1], "w"),
)
PYTHON

cat >assign.js <<'JAVASCRIPT'
const fs = require("fs");
const { FlagdCore } = require(`${process.cwd()}/${process.argv[2]}/node_modules/@openfeature/flagd-core`);
const quiet = { debug() {}, info() {}, warn() {}, error() {} };
const core = new FlagdCore(undefined, quiet);
core.setConfigurations(fs.readFileSync("flags.json", "utf8"));
const assigned = {};
for (const flag of ["by-key", "by-number"])
  assigned[flag] = Array.from({ length: 2000 }, (_, i) =>
    core.resolveStringEvaluation(flag, "", { targetingKey: `user-${i}`, account: i }, quiet).value);
fs.writeFileSync(process.argv[3], JSON.stringify(assigned));
JAVASCRIPT

for version in 1.0.0 2.0.0; do "py$version/bin/python" assign.py "py$version.json" 2>/dev/null; done
for version in 1.3.0 4.0.1; do node assign.js "js$version" "js$version.json"; done

cat >compare.py <<'PYTHON'
import json

NAMES = ["py1.0.0", "py2.0.0", "js1.3.0", "js4.0.1"]
found = {name: json.load(open(f"{name}.json")) for name in NAMES}


def share(holds: list[bool]) -> str:
    part = sum(holds) / len(holds)
    return {0.0: "none", 1.0: "all"}.get(part, "half" if 0.45 < part < 0.55 else f"{part:.3f}")


for name in NAMES:
    large = [variant == "large" for variant in found[name]["by-key"]]
    default = [variant == "none" for variant in found[name]["by-number"]]
    print(f"{name}: large for {share(large)} of the keys, default for {share(default)} of the numbers")
for k, one in enumerate(NAMES):
    for other in NAMES[k + 1 :]:
        same = [a == b for a, b in zip(found[one]["by-key"], found[other]["by-key"])]
        print(f"{one} and {other}: same variant for {share(same)} of the keys")
PYTHON
python3 compare.py | tee seen
diff seen - <<'SEEN' || { echo "this has changed"; exit 1; }
py1.0.0: large for half of the keys, default for all of the numbers
py2.0.0: large for half of the keys, default for none of the numbers
js1.3.0: large for half of the keys, default for all of the numbers
js4.0.1: large for half of the keys, default for all of the numbers
py1.0.0 and py2.0.0: same variant for half of the keys
py1.0.0 and js1.3.0: same variant for half of the keys
py1.0.0 and js4.0.1: same variant for all of the keys
py2.0.0 and js1.3.0: same variant for half of the keys
py2.0.0 and js4.0.1: same variant for half of the keys
js1.3.0 and js4.0.1: same variant for half of the keys
SEEN
