"""What a plan is asked for, as it comes over the wire or from the command line."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import msgspec

from equipoise.agent.errors import PlanError
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.simulation.paths import ASSIGNMENTS

FEWEST_MODELS, MOST_MODELS = 2, 64
LARGEST, LEAST = 1e12, 1e-6
"""Of amounts and rewards, and of rates: beyond them numbers lose their digits."""
LEAST_DELTA, LEAST_WEIGHT = 1e-12, 1e-9
"""Of delta, and of the probability rate * floor that a request is given to a model."""
FEWEST_DIGITS = 1e-9
"""Of differences, as a share of the range of rewards; of the range, as a share of its ends."""
MIX_ROUNDING = 0.005
"""By which shares of today's traffic may miss 1: people round them."""
FLOOR_SHARE = 0.1
"""The default floor is this share of the uniform probability 1 / K, as in a configuration."""


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers of a plan; rewards, effects and widths in reward units, money in USD.

    models: how many, two if None; a store or a benchmark knows them. traffic: requests an hour;
    None where only a budget counts, and then nothing is said about time. reward_rate: what all
    models but the best are worth; reward_sd: of a single reward, None for rewards that are 0 or 1
    (on the scale from reward_low to reward_high).
    Goals: effect to be found with `power`, half_width of the contrast of the leader with the
    runner-up, regret that is exceeded with probability at most delta; or a budget of randomized
    requests, money or harm.
    price: of a request to any model; prices: one for each model; mix: (K,) shares of today's
    traffic that each model gets, so that money is the extra bill against it and harm counts against
    it too. names: (K,); candidate: which of them may be better than all the others, the one with
    the least share of `mix`, the first if None. title: of the page. policies: assignments. rate:
    share of requests that are randomized; floor: least probability of a model, 0.1 / K if None.
    sequence: the declared one. explained: share of the reward's variance that replays (SIM)
    predict; 0 while nothing is known. window, horizon: hours until a reward is final, and until you
    must know.
    segments: parts of equal traffic that get answers of their own.
    rated: share of randomized requests whose reward comes, all of them if None; reward_rate,
    reward_sd and effect are then those of requests whose reward comes, and half_width, regret and
    epsilon of all. missing: what a reward that never comes counts as, a declared value or the worst
    case.
    """

    models: int | None = None
    traffic: float | None = None
    reward_rate: float | None = None
    effect: float | None = None
    power: float = 0.8
    half_width: float | None = None
    regret: float | None = None
    budget_requests: float | None = None
    budget_money: float | None = None
    budget_harm: float | None = None
    reward_sd: float | None = None
    reward_low: float = 0.0
    reward_high: float = 1.0
    maximise: bool = True
    price: float | None = None
    prices: list[float] | None = None
    mix: list[float] | None = None
    names: list[str] | None = None
    candidate: str | None = None
    title: str | None = None
    policies: list[str] = msgspec.field(
        default_factory=lambda: ["uniform", "top-two", "track-and-stop"]
    )
    rate: float = 0.1
    floor: float | None = None
    delta: float = 0.05
    epsilon: float = 0.0
    sequence: str = "bounded"
    explained: float = 0.0
    explainable: float | None = None
    columns: int | None = None
    replay_price: float | None = None
    hour_price: float = 0.0
    window: float = 0.0
    horizon: float | None = None
    segments: int = 0
    rated: float | None = None
    missing: Literal["worst-case", "rated", "asked", "net"] | float = "worst-case"
    ask: float | None = None
    seed: int = 0

    @property
    def count(self) -> int:
        """How many models: as many as are named, two where nothing says otherwise."""
        if self.models is not None:
            return self.models
        return FEWEST_MODELS if self.names is None else len(self.names)

    @property
    def missing_value(self) -> float | None:
        """The declared value of a missing reward, None where none is."""
        if self.missing == "net":
            return 0.0
        return None if isinstance(self.missing, str) else self.missing

    @property
    def of_raters(self) -> bool:
        """Whether the answer is about the requests that are rated."""
        return self.missing in ("rated", "asked")


def read_request(data: object) -> PlanRequest:
    """The request in tables and numbers, checked field by field. Raises PlanError."""
    if isinstance(data, dict) and data.get("missing") == "net":
        data = {"reward_low": -1.0, "reward_high": 1.0, **data}
    try:
        request = msgspec.convert(data, PlanRequest)
    except msgspec.ValidationError as error:
        raise _refusal(data, str(error)) from None
    check(request)
    return request


def _refusal(data: object, text: str) -> PlanError:
    """A fault of msgspec's ("Expected `int`, got `str` - at `$.models`") by field and value."""
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if unknown:
        fields = ", ".join(PlanRequest.__struct_fields__)
        return PlanError(unknown[1], "no field of a plan", f"one of {fields}")
    expected, _, where = text.partition(" - at `$.")
    field = re.split(r"[`.\[]", where)[0] or "request"
    value = data.get(field, "no plan") if isinstance(data, dict) else "no plan"
    if field == "missing":
        expected = "'worst-case', 'rated', 'asked', 'net' or a number"
    return PlanError(field, f"{value!r}"[:80], expected.removeprefix("Expected "))


def check(request: PlanRequest) -> None:
    """Everything wrong with numbers by themselves. Raises PlanError at the first."""
    for name in request.__struct_fields__:
        value: Any = getattr(request, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise PlanError(name, value, "a finite number")
    for name in ("reward_low", "reward_high"):
        value = getattr(request, name)
        _hold(name, value, abs(value) <= LARGEST, f"a number within ±{LARGEST:g}")
    low, high = request.reward_low, request.reward_high
    span, digits = high - low, FEWEST_DIGITS * max(abs(low), abs(high))
    expected = f"more than {low:.12g}, by more than {digits:.3g}"
    _hold("reward_high", high, span > digits, expected)
    models = request.count
    within = FEWEST_MODELS <= models <= MOST_MODELS
    _hold("models", models, within, f"{FEWEST_MODELS} to {MOST_MODELS}")
    rate = request.rate
    _hold("rate", rate, LEAST <= rate <= 1, f"at least {LEAST:g} and at most 1")
    _floor(request, models)
    _amount("traffic", request.traffic, LARGEST, "requests an hour, ")
    least = FEWEST_DIGITS * span
    for name in ("effect", "half_width", "regret"):
        value = getattr(request, name)
        if value is not None:
            expected = f"more than 0 and at most {span:g}, the range of rewards"
            _hold(name, value, 0 < value <= span * (1.0 + 1e-12), expected)
            expected = f"at least {least:.3g}, a billionth of the range of rewards"
            _hold(name, value, value >= least, expected)
    for name in ("budget_requests", "budget_money", "budget_harm"):
        _amount(name, getattr(request, name), LARGEST)
    _share("power", request.power, 0 < request.power < 1, "between 0 and 1")
    _hold("power", request.power, request.power >= LEAST, f"at least {LEAST:g}")
    _hold("delta", request.delta, 0 < request.delta <= 0.5, "more than 0 and at most 0.5")
    _hold("delta", request.delta, request.delta >= LEAST_DELTA, f"at least {LEAST_DELTA:g}")
    _hold("epsilon", request.epsilon, 0 <= request.epsilon < span, f"0 or more, below {span:g}")
    _share("explained", request.explained, 0 <= request.explained < 1, "0 or more, below 1")
    if request.explainable is not None:
        share = request.explainable
        within = share == 0 or 1e-3 <= share <= 0.999
        _hold("explainable", share, within, "0, or a share from 0.001 to 0.999")
        expected = f"at most explainable, which is {share:g}: no replays predict more"
        _hold("explained", request.explained, request.explained <= share, expected)
    if request.columns is not None:
        _hold("columns", request.columns, 1 <= request.columns <= 10_000, "1 to 10,000")
    for name in ("replay_price", "hour_price"):
        value = getattr(request, name)
        expected = f"USD, 0 or more, at most {LARGEST:g}"
        _hold(name, value, value is None or 0 <= value <= LARGEST, expected)
    expected = f"hours, 0 or more, at most {LARGEST:g}"
    _hold("window", request.window, 0 <= request.window <= LARGEST, expected)
    _hold("segments", request.segments, 0 <= request.segments <= 64, "0 to 64")
    _hold("seed", request.seed, request.seed >= 0, "0 or more")
    if request.horizon is not None:
        expected = f"more than the outcome window of {request.window:g} hours, at most {LARGEST:g}"
        _hold("horizon", request.horizon, request.window < request.horizon <= LARGEST, expected)
    if request.rated is not None:
        expected = f"a share, at least {LEAST:g} and at most 1"
        _hold("rated", request.rated, LEAST <= request.rated <= 1, expected)
    if request.of_raters and request.sequence == Sequence.ASYMPTOTIC:
        expected = f"bounded or per-model with missing = '{request.missing}'"
        _hold("sequence", request.sequence, False, expected)
    if request.ask is not None:
        _hold("ask", request.ask, LEAST <= request.ask <= 1, f"a share, {LEAST:g} to 1")
    if request.missing == "asked":
        expected = "the share of users who are asked, with missing = 'asked'"
        _hold("ask", request.ask, request.ask is not None, expected)
    else:
        expected = "nothing, or missing = 'asked' with it"
        _hold("ask", request.ask, request.ask is None, expected)
    if request.missing == "net" and (low, high) != (-1.0, 1.0):
        _hold("reward_low to reward_high", f"{low:g} to {high:g}", False, "-1 to 1 with 'net'")
    missing = request.missing_value
    if missing is not None:
        expected = f"a meaning, or {low:g} to {high:g}, the range of rewards"
        _hold("missing", missing, low <= missing <= high, expected)
    _names(request)
    _models(request, models)
    _prices(request, models)
    _reward(request)


def _hold(field: str, value: object, holds: bool, limit: str) -> None:
    if not holds:
        raise PlanError(field, value, limit)


def _share(field: str, value: float, holds: bool, limit: str) -> None:
    _hold(field, value, holds, limit)
    _hold(field, f"{value!r}", value <= 1 - LEAST, f"at most {1 - LEAST}")


def _amount(field: str, value: float | None, most: float, what: str = "") -> None:
    if value is not None:
        _hold(field, value, 0 < value <= most, f"{what}more than 0 and at most {most:g}")
        _hold(field, value, value >= LEAST, f"{what}at least {LEAST:g}")


def _floor(request: PlanRequest, models: int) -> None:
    floor = request.floor
    if floor is not None:
        least = LEAST_WEIGHT / request.rate
        limit = f"more than 0 and at most 1 / {models}, with {models} models"
        _hold("floor", floor, 0 < floor <= 1 / models, limit)
        _hold("floor", floor, floor >= least, f"at least {least:.3g}, for the weight it allows")


def _names(request: PlanRequest) -> None:
    sequences = [each.value for each in Sequence]
    known = request.sequence in sequences
    _hold("sequence", request.sequence, known, f"one of {', '.join(sequences)}")
    _hold("policies", "empty", bool(request.policies), f"some of {', '.join(ASSIGNMENTS)}")
    for name in request.policies:
        limit = f"one of {', '.join(ASSIGNMENTS)}: plans know no contexts"
        _hold("policies", name, name in ASSIGNMENTS, limit)


MOST_LETTERS = 200
"""Of a name or a title."""


def _models(request: PlanRequest, models: int) -> None:
    names = request.names
    if names is not None:
        _hold("names", f"of length {len(names)}", len(names) == models, f"{models} names")
        for name in names:
            within = 0 < len(name) <= MOST_LETTERS
            _hold("names", f"{name!r}"[:80], within, f"1 to {MOST_LETTERS} letters each")
            _hold("names", f"{name!r} twice", names.count(name) == 1, "every name once")
    candidate = request.candidate
    if candidate is not None:
        known = names or []
        expected = f"one of {', '.join(known)}" if known else "none where no models are named"
        _hold("candidate", candidate, candidate in known, expected)
    if request.title is not None:
        within = 0 < len(request.title) <= MOST_LETTERS
        _hold("title", f"{request.title!r}"[:80], within, f"1 to {MOST_LETTERS} letters")
    mix = request.mix
    if mix is not None:
        _hold("mix", f"of length {len(mix)}", len(mix) == models, f"{models} shares")
        for share in mix:
            _hold("mix", share, 0 <= share <= 1, "shares of today's traffic, 0 to 1")
        total = math.fsum(mix)
        within = abs(total - 1.0) <= MIX_ROUNDING
        _hold("mix", f"{total:.4g} in all", within, "shares that add up to 1")


def _prices(request: PlanRequest, models: int) -> None:
    for price in [*(request.prices or []), *([] if request.price is None else [request.price])]:
        _hold("price", price, 0 <= price <= LARGEST, "USD a request, 0 or more")
    if request.prices is not None:
        count = len(request.prices)
        _hold("prices", f"of length {count}", count == models, f"{models} prices")


def _reward(request: PlanRequest) -> None:
    rate, low, high = request.reward_rate, request.reward_low, request.reward_high
    if rate is None:
        return
    _hold("reward_rate", rate, low <= rate <= high, f"{low:g} to {high:g}, the range of rewards")
    if request.reward_sd is not None:
        most = math.sqrt((rate - low) * (high - rate))
        expected = (
            f"more than 0 and at most {most:.4g}, the most at a mean of {rate:g} in this range"
        )
        _hold("reward_sd", request.reward_sd, 0 < request.reward_sd <= most + 1e-12, expected)
    room = high - rate if request.maximise else rate - low
    if request.effect is not None:
        expected = f"at most {room:.4g}: no model can be better than {rate:g} by more in this range"
        _hold("effect", request.effect, request.effect <= room + 1e-12, expected)
