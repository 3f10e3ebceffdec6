#!/usr/bin/env bash
# growthbook 4.0.0 (Python): a tracking callback of two arguments, as its type says, tracks nothing.
#
# Guess: on_experiment_viewed is called with the experiment and the result, as in other languages,
# or a callback that does not fit raises. Seen, with growthbook 4.0.0 (PyPI): the client calls it
# by keyword with experiment, result and user_context. A callback f(experiment, result) raises a
# TypeError inside, which the client catches and only logs; run() still says inExperiment and
# gives the variation, so users are treated and no exposure is recorded. With **kwargs or a third
# parameter user_context every view arrives.
#
# What follows: count exposures against assignments before any analysis. A log of exposures that is
# empty or short is no sign that nobody was in the experiment.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check growthbook==4.0.0

cat >"$folder/view.py" <<'PYTHON'
import logging
from importlib.metadata import version

from growthbook import Experiment, GrowthBook

logging.disable(logging.CRITICAL)


def viewed(callback):
    """(users in the experiment, views that the callback got) of 100 users."""
    inside = 0
    for user in range(100):
        client = GrowthBook(attributes={"id": f"u{user}"}, on_experiment_viewed=callback)
        result = client.run(Experiment(key="split", variations=["a", "b"]))
        inside += result.inExperiment
    return inside


two, three = [], []


def of_two(experiment, result):
    two.append(result.value)


def of_three(experiment, result, user_context):
    three.append(result.value)


inside = viewed(of_two), viewed(of_three)
print(f"growthbook {version('growthbook')}: in the experiment {inside}, seen {len(two)}, {len(three)}")
assert inside == (100, 100)
assert (len(two), len(three)) == (0, 100)
PYTHON
"$folder/venv/bin/python" "$folder/view.py"
