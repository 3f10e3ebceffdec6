#!/usr/bin/env bash
# coba 8.1.0: RejectionCB with off-policy estimates of the rejected rows reports half of the reward.
#
# Guess: RejectionCB is unbiased for a stationary log with cpct = 0, as its description says, and
# ope="ips" or "dr" only adds what the rejected rows know, so the mean gets less noisy. Seen, with
# coba 8.1.0 and vowpalwabbit 9.11.9 (PyPI), on 3,000 rows of three models at .2, .5 and .8 that
# were logged by equal shares: for "serve one model to everybody" the plain evaluator is within .03
# of the truth and the one with "ips" reports .11 for .2 and .43 for .8. With "dr" it reports
# exactly what "dm" does. An accepted row stands in the mean with its reward as it is, and no longer
# with its weight; the rejected ones beside it are just those with another model than the evaluated
# policy's, whose estimate is 0. For the same reason the correction of "dr" never applies. Where
# nothing is rejected (equal shares for everybody) all of them agree.
#
# What follows: accepted and rejected rows are not two samples of one estimand. Here a replay of a
# logged bandit by rejection uses accepted rows alone, and an estimate uses all rows with their
# weights.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check coba==8.1.0 vowpalwabbit==9.11.9

cat >"$folder/ask.py" <<'PYTHON'
import warnings

warnings.simplefilter("ignore")
from statistics import fmean

import coba
from coba.random import CobaRandom

RATES = (0.2, 0.5, 0.8)
draws = CobaRandom(4)
log = []
for _ in range(3000):
    model = draws.choice([0, 1, 2])
    reward = float(draws.random() < RATES[model])
    log.append(coba.LoggedInteraction(None, model, reward, probability=1 / 3, actions=[0, 1, 2]))


class Logged:
    params = {}

    def read(self):
        yield from (dict(row) for row in log)


for name, shares in (("first", [1, 0, 0]), ("third", [0, 0, 1]), ("equal", [1 / 3] * 3)):
    truth = sum(share * rate for share, rate in zip(shares, RATES))
    means = {}
    for ope in (None, "ips", "dm", "dr"):
        rows = coba.RejectionCB(ope=ope, cpct=0, seed=1).evaluate(Logged(), coba.FixedLearner(shares))
        means[ope] = fmean(row["reward"] for row in rows)
    near = {ope: abs(mean - truth) < 0.03 for ope, mean in means.items()}
    half = 0.4 < means["ips"] / truth < 0.65
    print(f"{name}: plain within .03 of the truth: {near[None]}; ips: {near['ips']}, about half: {half}")
    print(f"{name}: dr differs from dm: {abs(means['dr'] - means['dm']) > 1e-9}")
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "this has changed"; exit 1; }
first: plain within .03 of the truth: True; ips: False, about half: True
first: dr differs from dm: False
third: plain within .03 of the truth: True; ips: False, about half: True
third: dr differs from dm: False
equal: plain within .03 of the truth: True; ips: True, about half: False
equal: dr differs from dm: False
SEEN
