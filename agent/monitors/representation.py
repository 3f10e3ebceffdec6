"""Representation: do the outputs carry all that users react to?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from equipoise.agent.estimators.base import Estimate
from equipoise.agent.monitors.check import Check
from equipoise.store.batches import Flags
from equipoise.store.words import plural

FEWEST_ROWS = 100
LARGE_EFFECT = 0.1
"""Size of the effects of models, in standard deviations of a reward, that asks for a look."""
NEAR = 0.7
"""Share of the boundary from which a gap asks for a look."""
_TUNED_ROWS = 1000.0
_EFFICIENT = "doubly-robust"
_PLAIN = "ipw"


def representation(
    estimates: Mapping[str, Estimate], models: Sequence[str], level: float = 0.01
) -> Check:
    """Compare the values through the representation with those that do without it.

    Gap per model: `representation-exp` less `doubly-robust` (`ipw` where that is unknown), in
    standard errors of the two added up; their errors are positively related, so this errs towards
    silence. A gap of any of the K models beyond the boundary of a normal mixture at level / K
    (Robbins 1970; valid at all times as far as the estimates are normal) is an alarm: asymptotic,
    not certified. A gap of 0.7 of that, or a `tau_model` of `hierarchical` (what is left to the
    models beyond their outputs) of 0.1 standard deviations of a reward, is worth a look.
    """
    reference = next(
        (
            estimates[name]
            for name in (_EFFICIENT, _PLAIN)
            if name in estimates and _known(estimates[name]).any()
        ),
        None,
    )
    pooled = estimates.get("representation-exp")
    tau = _number(estimates, "hierarchical", "tau_model")
    rows = _number(estimates, "representation-exp", "rows")
    figures: dict[str, object] = {"rows": rows, "tau_model": tau}
    if reference is None or pooled is None or not rows >= FEWEST_ROWS:
        sentence = (
            f"Too few randomized requests have a reward (at least {FEWEST_ROWS} are needed) to say "
            f"whether outputs explain what models are worth."
        )
        return Check("representation", "unknown", sentence, figures, level)
    known = _known(pooled) & _known(reference)
    if not known.any():
        sentence = "No model has a value both through its outputs and without: replays are missing."
        return Check("representation", "unknown", sentence, figures, level)
    gap = np.where(known, pooled.values - reference.values, np.nan)
    variance = np.diag(pooled.covariance) + np.diag(reference.covariance)
    ratio = np.zeros(len(gap))
    np.divide(np.abs(gap), np.sqrt(variance), out=ratio, where=known & (variance > 0))
    limit = boundary(rows, level / len(gap))
    figures |= {
        "reference": reference.family,
        "gap": gap.tolist(),
        "standardized_gap": np.where(known, ratio, np.nan).tolist(),
        "boundary": limit,
    }
    worst = int(np.argmax(ratio))
    if ratio[worst] >= limit:
        sentence = (
            f"The outputs do not explain what {models[worst]} is worth: through them it is "
            f"{pooled.values[worst]:.3g}, by the experiment alone {reference.values[worst]:.3g}. "
            f"Do not trust estimates that pool over models; hierarchical allows for it."
        )
        return Check("representation", "alarm", sentence, figures, level, (worst,))
    if tau >= LARGE_EFFECT or ratio[worst] >= NEAR * limit:
        sentence = (
            f"Models may differ by more than their outputs show: {models[worst]} is worth "
            f"{pooled.values[worst]:.3g} through them, {reference.values[worst]:.3g} by the "
            f"experiment alone. It may still be chance."
        )
        return Check("representation", "watch", sentence, figures, level)
    sentence = (
        f"The outputs explain what the models are worth: with and without them values agree within "
        f"{ratio[worst]:.1f} standard errors over {plural(rows, 'randomized request')}."
    )
    return Check("representation", "ok", sentence, figures, level)


def boundary(rows: float, level: float) -> float:
    """Standard errors that a centred normal sum ever leaves with probability `level`.

    The two-sided normal mixture tuned at 1,000 rows: sqrt((1 + m / n) (log(1 + n / m) - 2 log
    level)).
    """
    ratio = rows / _TUNED_ROWS
    return float(np.sqrt((1.0 + 1.0 / ratio) * (np.log1p(ratio) - 2.0 * np.log(level))))


def _known(estimate: Estimate) -> Flags:
    variance = np.diag(estimate.covariance)
    known: Flags = np.isfinite(estimate.values) & np.isfinite(variance)
    return known


def _number(estimates: Mapping[str, Estimate], family: str, name: str) -> float:
    estimate = estimates.get(family)
    return float("nan") if estimate is None else float(estimate.diagnostics.get(name, float("nan")))
