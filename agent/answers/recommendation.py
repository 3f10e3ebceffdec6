"""What to do with production traffic: the best single model, or today's routing as it is.

Today's routing is always on the list: users may choose well, and then the best single model is
worse than what is deployed. Its value needs no identification: traffic served as routed shows it.

An estimate alone never changes what is served: the action is to keep today's routing until a model
is certified. What the estimate leans to stands beside it, always with its error, and is nothing
where the error is unknown or larger than the range of rewards, or where the difference is rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from equipoise.agent.estimators.base import Estimate
from equipoise.store.batches import Flags, Floats

KEEP = "keep"
"""The action, or the leaning, to leave today's routing as it is."""
KEEP_ROUTING = "(today's routing)"
"""Today's routing among the candidates."""
ROUNDING = 1e-9
"""Differences up to this share of the range of rewards are ties: sums are exact to about 1e-12."""
_DIGITS = 1e-12
"""As ROUNDING, of the size of the numbers themselves, for ranges far from 0."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What is certified. models: one, better than every other where `lead` is above 0, else within
    `epsilon` of the best; or several, within epsilon of each other. by: lower end of the lead at
    the level of all pairs, which "by at least" needs. over_routing: lower end of what one is better
    than today's routing by. Reward units, larger being better. delta: probability that this is ever
    wrong."""

    models: tuple[str, ...]
    lead: float
    by: float
    over_routing: float
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A family's answer.

    model: its best single model, however sure. favoured: that, or KEEP_ROUTING where today's
    routing is worth as much by the estimates; what a replay scores. leaning: the same for people, a
    model or KEEP; None where too little is known to lean to anything, and in a tie. action: KEEP,
    or the model that is certified. value, error: of `model`, its estimate and standard error;
    routing_value, routing_error: of today's routing; reward units, NaN where unknown.
    sentence: the answer for people.
    """

    family: str
    model: str | None
    favoured: str | None
    leaning: str | None
    action: str
    value: float
    error: float
    routing_value: float
    routing_error: float
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def recommend(
    models: tuple[str, ...],
    estimate: Estimate,
    routing: tuple[float, float],
    sign: int = 1,
    *,
    low: float = 0.0,
    high: float = 1.0,
    backing: Backing | None = None,
) -> Recommendation:
    """Compare every model and today's routing (value, variance). sign -1: smaller is better.

    low, high: range of the rewards. backing: what is certified, None while nothing is.
    """
    words = _Words(models, estimate, routing, sign, low, high, backing)
    best = words.best
    model = None if best is None else models[best]
    keep = best is not None and sign * (routing[0] - float(words.values[best])) >= 0.0
    return Recommendation(
        family=estimate.family,
        model=model,
        favoured=KEEP_ROUTING if keep else model,
        leaning=words.leaning,
        action=words.action,
        value=np.nan if best is None else _known(float(words.values[best]), words.errors[best]),
        error=np.nan if best is None else float(words.errors[best]),
        routing_value=_known(*words.routing),
        routing_error=words.routing[1],
        sentence=words.sentence,
    )


def _known(value: float, error: float) -> float:
    """No value is told without its error."""
    return value if math.isfinite(error) else np.nan


class _Words:
    """One comparison, and how it is said. errors: (K,) standard errors, NaN where unknown."""

    def __init__(
        self,
        models: tuple[str, ...],
        estimate: Estimate,
        routing: tuple[float, float],
        sign: int,
        low: float,
        high: float,
        backing: Backing | None,
    ) -> None:
        self._models, self._sign, self._backing = models, sign, backing
        self._span = high - low
        self._tie = ROUNDING * self._span + _DIGITS * max(abs(low), abs(high))
        self._digits = min(max(3 - math.floor(math.log10(self._span)), 0), 15)
        self.values: Floats = estimate.values
        variances = np.append(np.diagonal(estimate.covariance), routing[1])
        # Rewards that never differed say nothing about how far their mean may be off.
        known = np.isfinite(variances) & (variances > self._tie**2)
        errors = np.sqrt(np.where(known, variances, np.nan))
        self.errors, self.routing = errors[:-1], (float(routing[0]), float(errors[-1]))
        turned = np.where(np.isfinite(self.values), sign * self.values, -np.inf)
        top = float(turned.max(initial=-np.inf))
        self._top: Flags = np.asarray(turned >= top - self._tie) & np.isfinite(self.values)
        self.best: int | None = int(np.argmax(self._top)) if self._top.any() else None
        self.leaning, self._estimated = self._compared()

    @property
    def action(self) -> str:
        """The certified model, unless the estimates say that today's routing is better still."""
        backing = self._backing
        if backing is None or len(backing.models) > 1:
            return KEEP
        return KEEP if self.leaning == KEEP and backing.over_routing <= 0.0 else backing.models[0]

    @property
    def sentence(self) -> str:
        backing = self._backing
        if backing is None:
            return f"Not certified: {self._estimated}."
        promise = f"(wrong in at most {backing.delta:.3g} of such experiments)"
        listed, model = ", ".join(backing.models), backing.models[0]
        if len(backing.models) > 1:
            return (
                f"{listed} are certified within {backing.epsilon:.4g} of each other {promise}. Not"
                f" certified: {self._estimated}."
            )
        if backing.lead > 0.0:
            by = f", by at least {backing.by:.4g}" if backing.by > 0.0 else ""
            claim = f"{model} is certified best of the models{by}"
        else:
            claim = f"{model} is certified within {backing.epsilon:.4g} of the best model"
        over = f"at least {backing.over_routing:.4g} better than today's routing"
        certified = backing.over_routing > 0.0
        claim += f", and {over} {promise}" if certified else f" {promise}"
        first = "Keep today's routing" if self.action == KEEP else f"Serve {model}"
        beside = "By the estimates" if certified else "Against today's routing nothing is certified"
        return f"{first}: {claim}. {beside}: {self._estimated}."

    def _compared(self) -> tuple[str | None, str]:
        """What the estimates lean to, and how that is said."""
        best = self.best
        if best is None:
            return None, "no model has a value yet"
        errors, (routing, routing_error) = self.errors, self.routing
        names = [self._models[index] for index in np.flatnonzero(self._top)]
        unknown = [
            self._models[index] for index in np.flatnonzero(self._top & ~np.isfinite(errors))
        ]
        if unknown:
            return None, f"too few different rewards of {', '.join(unknown)} to say what is best"
        if not float(errors[best]) <= self._span:
            return None, (
                f"the errors are larger than the range of rewards ({self._of(best)} for"
                f" {names[0]}), so nothing can be said"
            )
        lead = self._sign * (float(self.values[best]) - routing)
        known = math.isfinite(routing) and math.isfinite(routing_error)
        if known and not routing_error <= self._span:
            known = False
        others = self._missing()
        if known and abs(lead) <= self._tie:
            listed = " and ".join([*names, "today's routing"])
            return None, f"{listed} tie at {self._of(best)}{others}"
        if known and lead < 0.0:
            return KEEP, (
                f"no single model looks better than what you deploy: the best one, {names[0]}, is"
                f" worth {self._of(best)}, today's routing {self._both(*self.routing)}{others}"
            )
        if len(names) > 1:
            return None, f"{' and '.join(names)} tie at {self._of(best)}{others}"
        against = "; the value of today's routing is unknown"
        if known:
            gap = float(self.values[best]) - routing
            error = math.hypot(float(errors[best]), routing_error)
            against = (
                f", {gap:+.{self._digits}f} ± {error:.{self._digits}f} against today's routing"
                f" ({self._both(*self.routing)})"
            )
        return names[0], f"{names[0]} looks best, worth {self._of(best)}{against}{others}"

    def _missing(self) -> str:
        """Models of which nothing is known, "" where there is none."""
        blank = np.flatnonzero(~np.isfinite(self.values))
        if not len(blank):
            return ""
        return f"; of {', '.join(self._models[index] for index in blank)} nothing is known"

    def _of(self, index: int) -> str:
        return self._both(float(self.values[index]), float(self.errors[index]))

    def _both(self, value: float, error: float) -> str:
        return f"{value:.{self._digits}f} ± {error:.{self._digits}f}"
