#!/usr/bin/env bash
# vowpalwabbit 9.11.9: the loss of --cb_adf --cb_type dr is doubly robust as it learns, IPS with -t.
#
# Guess: --cb_type names the estimator, so the loss that is reported of a policy is the estimate of
# that name, and a policy that was learned with "dr" is tested with it, on rows that it has not seen,
# for a steadier number than IPS. Seen, with vowpalwabbit 9.11.9 (PyPI), on 4,000 rows of three
# actions at .6, .3 and .1, for "serve the third to everybody", whose truth is -.5: --cb 3 --eval
# reports -0.4918 for "ips" and -0.5009 for "dr". --cb_adf learns that policy with "dr" and "mtr", and
# in test mode reports -0.4918 for both: to six digits the mean of cost / probability over the rows
# whose action was chosen, although the "dr" policy holds the costs that it would take. As it
# learns, the losses of "ips" and "mtr" are that mean as well, and only that of "dr" is another.
#
# What follows: the loss as it learned and the loss of a test with -t are two estimators under one
# name, and their difference is no sign of overfitting; a doubly robust estimate of a policy that
# is kept has to be made elsewhere.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check vowpalwabbit==9.11.9

cat >"$folder/ask.py" <<'PYTHON'
import json
import os
import random
import sys

import vowpalwabbit

os.chdir(sys.argv[1])
SHARES, COUNT = (0.6, 0.3, 0.1), 4000
draws, rows = random.Random(2), []
for _ in range(COUNT):
    action, x = draws.choices(range(3), SHARES)[0], draws.random()
    rows.append((action, -(0.1 + 0.8 * (0.2, 0.5, 1.0)[action] * x), x))

with open("plain", "w") as plain, open("lines", "w") as lines:
    for number, (action, cost, x) in enumerate(rows):
        plain.write(f"3 {action + 1}:{cost}:{SHARES[action]} | x:{x}\n")
        order = [action, *(each for each in range(3) if each != action)]
        event = {
            "_label_cost": cost,
            "_label_probability": SHARES[action],
            "_label_Action": action + 1,
            "_labelIndex": action,
            "Timestamp": "2026-01-01T00:00:00.0000000Z",
            "Version": "1",
            "EventId": str(number),
            "a": [each + 1 for each in order],
            "c": {"x": {"x": x}, "_multi": [{"m": {f"m{each}": 1}} for each in range(3)]},
            "p": [SHARES[each] for each in order],
        }
        lines.write(json.dumps(event) + "\n")


def loss(options):
    """The reported loss of a run over all rows, and what it chose."""
    ran = vowpalwabbit.Workspace(f"{options} --quiet")
    total = ran.get_sum_loss() / COUNT
    ran.finish()
    return total


def weighted(chosen):
    """The mean of cost / probability over the rows whose action was chosen."""
    same = zip(rows, chosen, strict=True)
    return sum(cost / SHARES[action] for (action, cost, _), other in same if action == other) / COUNT


for kind in ("ips", "dr"):
    print(f"--cb --eval, {kind}: {loss(f'--cb 3 --eval --cb_type {kind} -d plain'):.4f}")
for kind in ("ips", "mtr", "dr"):
    said = loss(f"--cb_adf --cb_type {kind} -q xm --dsjson -d lines -p chosen -f policy")
    with open("chosen") as chosen:
        taken = [int(line.split(":")[0]) for line in chosen if line.strip()]
    print(f"--cb_adf, {kind}: the weighted mean: {abs(said - weighted(taken)) < 1e-6}")
    said = loss("-t -i policy --dsjson -d lines -p chosen")
    with open("chosen") as chosen:
        taken = [int(line.split(":")[0]) for line in chosen if line.strip()]
    print(f"--cb_adf -t, {kind}: the weighted mean: {abs(said - weighted(taken)) < 1e-6}")
    if set(taken) == {2}:
        print(f"--cb_adf -t, {kind}: serves the third to everybody: {said:.4f}")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" "$folder" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "this has changed"; exit 1; }
--cb --eval, ips: -0.4918
--cb --eval, dr: -0.5009
--cb_adf, ips: the weighted mean: True
--cb_adf -t, ips: the weighted mean: True
--cb_adf, mtr: the weighted mean: True
--cb_adf -t, mtr: the weighted mean: True
--cb_adf -t, mtr: serves the third to everybody: -0.4918
--cb_adf, dr: the weighted mean: False
--cb_adf -t, dr: the weighted mean: True
--cb_adf -t, dr: serves the third to everybody: -0.4918
SEEN
