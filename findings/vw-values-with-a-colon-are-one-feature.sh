#!/usr/bin/env bash
# vowpalwabbit 9.11.9: "llama3:8b", "llama3_8b" and "llama3 8b" are one model, and none is learned.
#
# Guess: a decision-service line names each action by a text, {"m": {"model": "llama3:8b"}}, and two
# actions with different texts are two actions to the learner, as JSON texts are data. Seen, with
# vowpalwabbit 9.11.9 (PyPI) and --dsjson, on 3,000 lines of three actions by equal shares, of which
# the second is rewarded 9 times in 10 and the others once in 10: with names that differ in "-", "."
# and "/" all of the greedy mass is on the second. With names that differ in ":", "_" and a blank it
# is 1/3 each: in a value blanks, tabs, ":" and "|" are turned into "_" before the hash, so the
# three actions have equal features and whatever is learned of one is learned of all. Nothing is
# said. As the name of a feature, {"m": {"model=llama3:8b": 1}}, the same texts stay apart.
#
# What follows: names of models (tags of Ollama, ids of Bedrock with ":0" at their end) are written
# as names of features in lines for Vowpal Wabbit, never as values.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check vowpalwabbit==9.11.9

cat >"$folder/ask.py" <<'PYTHON'
import json
import random

import vowpalwabbit


def line(action, cost, features):
    order = [action, *(each for each in range(3) if each != action)]
    return json.dumps(
        {
            "_label_cost": cost,
            "_label_probability": 1 / 3,
            "_label_Action": action + 1,
            "_labelIndex": action,
            "Timestamp": "2026-01-01T00:00:00.0000000Z",
            "Version": "1",
            "EventId": "e",
            "a": [each + 1 for each in order],
            "c": {"_multi": [{"m": each} for each in features]},
            "p": [1 / 3] * 3,
        }
    )


def learned(features):
    learner = vowpalwabbit.Workspace("--cb_explore_adf --epsilon 0 --dsjson --quiet")
    draws = random.Random(1)
    for _ in range(3000):
        action = draws.randrange(3)
        cost = -float(draws.random() < (0.1, 0.9, 0.1)[action])
        lines = learner.parse(line(action, cost, features))
        learner.learn(lines)
        learner.finish_example(lines)
    lines = learner.parse(line(0, 0.0, features))
    shares = learner.predict(lines)
    learner.finish_example(lines)
    learner.finish()
    return [round(share, 3) for share in shares]


for names in (
    ("llama3-8b", "llama3.8b", "llama3/8b"),
    ("llama3:8b", "llama3_8b", "llama3 8b"),
    ("nova:0", "nova|0", "nova\t0"),
):
    as_value = learned([{"model": name} for name in names])
    as_name = learned([{f"model={name}": 1} for name in names])
    print(json.dumps(names), "as values", as_value, "as names of features", as_name)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "this has changed"; exit 1; }
["llama3-8b", "llama3.8b", "llama3/8b"] as values [0.0, 1.0, 0.0] as names of features [0.0, 1.0, 0.0]
["llama3:8b", "llama3_8b", "llama3 8b"] as values [0.333, 0.333, 0.333] as names of features [0.0, 1.0, 0.0]
["nova:0", "nova|0", "nova\t0"] as values [0.333, 0.333, 0.333] as names of features [0.0, 1.0, 0.0]
SEEN
