#!/usr/bin/env bash
# Rewards without variance: five answers of four libraries to the same 500 unanimous pairs.
#
# Guess: where model A got a thumb up and model B a thumb down in each of 500 pairs, every library
# for sequential or paired evaluation says that A is better, with an interval that has some width.
# Seen, with errorbars 0.2.4, evalsig 0.1.2, splita 0.1.0 and ville 0.1.0 (PyPI): errorbars reports
# the interval (1, 1) beside p = 1, and beside an exact McNemar p below 1e-100. evalsig reports
# (-inf, inf) and never stops. splita's confidence sequence reports (1, 1) and stops, its mSPRT the
# same interval with p = 1 and goes on; told that the metric is a conversion it finds p below 1e-40.
# ville's asymptotic sequence jumps from (-inf, inf) at row 99 to (1, 1) at row 100; its betting
# sequence, which knows the bounds, ends at (0.971, 1). The jump is no harmless corner: at a rate of
# .99, more than a third of the streams have an asymptotic interval that misses .99 at some time
# within 3,000 rows, at a nominal 5%.
#
# What follows: an estimated variance of 0 is a statement about what has not happened yet. The
# certified intervals here take their scale from the bounds of the reward, and the asymptotic one is
# withheld until the rarer outcome was seen often enough.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    errorbars==0.2.4 evalsig==0.1.2 splita==0.1.0 ville==0.1.0 numpy==2.4.6 scipy==1.17.1

cat >"$folder/ask.py" <<'PYTHON'
import warnings

import numpy as np
import ville
from errorbars.compare import paired_compare
from evalsig.inference.sequential import sequential_gate
from splita.sequential.confidence_sequence import ConfidenceSequence
from splita.sequential.msprt import mSPRT

warnings.simplefilter("ignore")
up, down = np.ones(500), np.zeros(500)

pairs = paired_compare(up, down)
print(f"errorbars: ({pairs.ci_low:g}, {pairs.ci_high:g}), p = {pairs.p_value:g},", end=" ")
print(f"McNemar below 1e-100: {pairs.mcnemar.p_value < 1e-100}")

gate = sequential_gate(up - down, alternative="two-sided")
print(f"evalsig: ({gate.ci[0]:g}, {gate.ci[1]:g}), stopped: {gate.stopped}")

sequence = ConfidenceSequence().update(down, up)
print(f"splita sequence: ({sequence.ci_lower:g}, {sequence.ci_upper:g}), stop: {sequence.should_stop}")
test = mSPRT(metric="continuous").update(down, up)
print(
    f"splita mSPRT: ({test.always_valid_ci_lower:g}, {test.always_valid_ci_upper:g}),"
    f" p = {test.always_valid_pvalue:g}, stop: {test.should_stop}"
)
test = mSPRT(metric="conversion").update(down, up)
print(f"splita mSPRT, conversion: p below 1e-40: {test.always_valid_pvalue < 1e-40}")

asymptotic = ville.AsymptoticCS().fit(up - down)
for row in (99, 100, 500):
    low, high = asymptotic.lower_[row - 1], asymptotic.upper_[row - 1]
    print(f"ville asymptotic, row {row}: ({low:g}, {high:g})")
low, high = ville.BettingCS(bounds=(-1, 1)).fit(up - down).interval()
print(f"ville betting: ({low:.3f}, {high:g})")

draws = np.random.default_rng(5)
missed = 0
for _ in range(300):
    sequence = ville.AsymptoticCS().fit(draws.random(3000) < 0.99)
    missed += bool(np.any((sequence.lower_ > 0.99) | (sequence.upper_ < 0.99)))
print("ville asymptotic misses a rate of .99 in more than a third of the streams:", missed > 100)
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "this has changed"; exit 1; }
errorbars: (1, 1), p = 1, McNemar below 1e-100: True
evalsig: (-inf, inf), stopped: False
splita sequence: (1, 1), stop: True
splita mSPRT: (1, 1), p = 1, stop: False
splita mSPRT, conversion: p below 1e-40: True
ville asymptotic, row 99: (-inf, inf)
ville asymptotic, row 100: (1, 1)
ville asymptotic, row 500: (1, 1)
ville betting: (0.971, 1)
ville asymptotic misses a rate of .99 in more than a third of the streams: True
SEEN
