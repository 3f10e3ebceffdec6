"""What each meaning of a missing reward certifies: `python tests/statistical/missing_study.py
[--runs 200] [--others 60] [--out docs/missing.md] [--keep FOLDER] [--only TEXT]`.

Two models, thumbs up or down from a share of the users, all meanings on the same requests. What a
row says depends on its kind alone (model, drawn or not, asked or not, thumb), so scores come from
the shipped functions once for each kind and are counted; test_missing_study.py shows the sums
equal to those of the shipped moments. A finished world is kept as a small JSON file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from markdown_text import percent, table
from scipy import special

from equipoise.agent.inference.mixture import contrast_bounds, usual_caps
from equipoise.agent.inference.rated import (
    Contrasts,
    RatedFrozen,
    RatedMoments,
    RatedRows,
    ends_of_rating,
    neutral_rating,
    parts_under,
)
from equipoise.agent.inference.score import Rows, ScoreCentres, ScoreMoments, Tuning, scores_under

MODELS, RATE, DELTA, LOOKS = 2, 0.2, 0.05, 80
ASKED = 0.25
"""Share of users that the meaning `asked` asks; they rate more often, so that as many rate."""
DRIFTED = 0.3
"""How far what raters say moves in the world that drifts, over all its requests."""
MAIN = 0.08
"""The share of users who rate whose worlds have the most runs."""
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MEANINGS = ("value", "worst-case", "rated", "asked")


@dataclass(frozen=True)
class World:
    """up: (2,) share of answers that users find good; rates: (2, 2) by model and thumb (down, up),
    the share that says so. drift: whether both models' shares move over time."""

    name: str
    share: float
    up: tuple[float, float]
    rates: tuple[tuple[float, float], tuple[float, float]]
    drift: bool = False

    def at(self, time):
        """(2, 3) chances of down, up and no reward. time: in [0, 1]."""
        good = np.array(self.up) + (DRIFTED * (time - 0.5) if self.drift else 0.0)
        rated = np.stack([1.0 - good, good], axis=1) * np.array(self.rates)
        return np.column_stack([rated, 1.0 - rated.sum(axis=1)])

    @property
    def truth(self):
        """Per meaning (2,) the estimand of each model, where nothing drifts."""
        down, up, _ = self.at(0.5).T
        rated = up / (down + up)
        return {"value": up, "worst-case": np.array(self.up), "rated": rated, "asked": rated}

    @property
    def horizon(self):
        """Requests: four times what a fixed-n test at 5% needs to find a gap of .1 with power .8,
        in the share of thumbs up of those who rate."""
        return int(4.0 * fixed_requests(np.array([0.6, 0.5]), np.full(2, self.share)))


def fixed_requests(rated, share):
    """Requests at which a one-sided fixed-n test of those who rate at level DELTA has power .8."""
    weight = MODELS / RATE
    variance = (weight * rated * (1.0 - rated) / share).sum()
    reach = special.ndtri(1.0 - DELTA) + special.ndtri(0.8)
    if np.isclose(*rated):
        return np.inf
    return reach**2 * variance / (rated[0] - rated[1]) ** 2


def worlds():
    """Four shares, each with some ways in which rating goes with the model and the reward."""
    for share in (0.03, 0.08, 0.3, 0.97):
        alike = ((share, share),) * 2
        yield World("alike", share, (0.6, 0.5), alike)
        if share > 0.9:
            # Nearly all rate; the few who do not are those whom the first model disappoints.
            yield World("by model and reward", share, (0.6, 0.5), ((0.94, 1.0), (0.99, 0.97)))
            continue
        # Who is disappointed rates twice as often.
        by_reward = (1.333 * share, 0.667 * share)
        yield World("by reward", share, (0.6, 0.5), (by_reward,) * 2)
        # The worse model hides what it does badly: among those who rate it is ahead.
        hides = ((1.2 * share, 0.8 * share), (0.5 * share, 1.2 * share))
        yield World("by model and reward", share, (0.6, 0.5), hides)
        yield World("alike, drifting", share, (0.6, 0.5), alike, drift=True)
        yield World("alike, no difference", share, (0.55, 0.55), alike)


def kinds(asking):
    """Rows of every kind, and (kinds, 4) of each: randomized, model, outcome (0, 1, 2 for none),
    asked. Requests that are not randomized are routed to the first model."""
    every = [
        (drawn, model, outcome, asked)
        for drawn, model, outcome, asked in product((0, 1), (0, 1), (0, 1, 2), (0, 1))
        if (drawn or model == 0) and (asked or asking)
    ]
    drawn, model, outcome, asked = np.array(every).T
    count = len(every)
    known = (outcome < 2) & (asked == 1)
    reward = np.where(known, outcome, 0.0)
    rows = Rows.of(
        np.full(count, RATE),
        np.full((count, MODELS), 1.0 / MODELS),
        drawn == 1,
        model,
        np.zeros(count, dtype=int),
        np.full((count, MODELS), np.nan),
        reward,
        known,
    )
    if asking:
        rows = replace(rows, chance=rows.chance * ASKED, drawn=rows.drawn & (asked == 1)[:, None])
    return rows, reward, known, np.array(every)


class Plain:
    """The sums of `value` or of `worst-case`."""

    def __init__(self, missing):
        rows, reward, known, self.of = kinds(asking=False)
        ends = (0.0, 1.0) if missing is None else (missing, missing)
        low, high = (np.where(known, reward, end) for end in ends)
        self.rows = replace(rows, low=low, high=high)
        self.caps = usual_caps(MODELS, RATE)
        self.sums = ScoreMoments.empty(3, MODELS + 1)
        self.tuning, self.centres = Tuning.off(MODELS), ScoreCentres.neutral(3, MODELS + 1)
        self.fit = Fit(self.rows)

    def add(self, counts):
        sums, weight = self.sums, counts[:, None]
        sums.rows += counts.sum()
        for cap, (low, high) in enumerate(scores_under(self.rows, self.tuning, self.caps)):
            u, v = low - self.centres.low[cap], high - self.centres.high[cap]
            sums.low[cap] += (weight * low).sum(axis=0)
            sums.high[cap] += (weight * high).sum(axis=0)
            sums.low_squares[cap] += (weight * u * u).sum(axis=0)
            sums.high_squares[cap] += (weight * v * v).sum(axis=0)
            sums.cross[cap] += (weight * u).T @ v
        self.fit.add(counts)
        self.tuning, self.centres = self.fit.tuning, sums.centres()

    def ruled_out(self, difference):
        """(2,) whether V(0) - V(1) <= difference, and the other way round >= it, are ruled out."""
        lower = contrast_bounds(self.sums, self.caps, MODELS, DELTA)
        return lower[0, 1] > difference, lower[1, 0] > -difference


class Fit:
    """The running means that predictions are without a scorer: of `TuningMoments` by kind."""

    def __init__(self, rows):
        self.weight = np.where(
            rows.drawn & (rows.low == rows.high)[:, None], (1 / rows.chance - 1) / rows.chance, 0.0
        )
        self.reward = rows.low[:, None] - 0.5
        self.sums = np.zeros((3, MODELS + 1))

    def add(self, counts):
        weight, many = self.weight, counts[:, None]
        for place, term in enumerate((weight, weight**2, weight * self.reward)):
            self.sums[place] += (many * term).sum(axis=0)

    @property
    def tuning(self):
        some = self.sums[0] > 0
        every = np.where(some, self.sums[0], 1.0)
        rows = np.where(some, every**2 / np.where(some, self.sums[1], 1.0), 0.0)
        mean = self.sums[2] / every * rows / (rows + 1.0) + 0.5
        return Tuning(mean, np.zeros(MODELS + 1))


class Raters:
    """The sums of `rated`, or of `asked`."""

    def __init__(self, share, asking=False):
        rows, reward, known, self.of = kinds(asking)
        low = np.column_stack([reward, 1.0 - known])
        ends = ends_of_rating(low, low)
        self.rows = RatedRows(replace(rows, low=ends[0], high=ends[1]), low, low)
        self.caps = usual_caps(MODELS, RATE * (ASKED if asking else 1.0))
        self.sums = RatedMoments.empty(3, MODELS + 1, MODELS)
        self.rating = neutral_rating(MODELS, 3, MODELS + 1, share)[0]
        self.frozen = RatedFrozen.neutral(MODELS, 3, MODELS + 1, share)
        self.fits = Fit(self.rows.rows), Fit(self.rows.rewards)

    def add(self, counts):
        sums, frozen, weight = self.sums, self.frozen, counts[:, None]
        sums.rows += counts.sum()
        parts = parts_under(self.rows, self.rating, frozen.tuning, self.caps)
        for cap, (low, high) in enumerate(parts):
            sums.low[:, cap] += (weight * low).sum(axis=1)
            sums.high[:, cap] += (weight * high).sum(axis=1)
            u, v = low - frozen.low[:, None, cap], high - frozen.high[:, None, cap]
            for products, part in ((sums.low_products, u), (sums.high_products, v)):
                for place, (i, j) in enumerate(((0, 0), (0, 1), (1, 1))):
                    products[place, cap] += (weight * part[i] * part[j]).sum(axis=0)
            for i, j in product(range(2), repeat=2):
                sums.cross[i, j, cap] += (weight * u[i]).T @ v[j]
        for fit in self.fits:
            fit.add(counts)
        self.rating, self.frozen = self.fits[0].tuning, sums.freeze(self.fits[1].tuning)

    def ruled_out(self, difference):
        tests = Contrasts.of(self.sums, self.caps, MODELS, DELTA)
        size = np.full((MODELS + 1,) * 2, difference)
        first, second = (np.minimum(each, 1.0 - tests.upper) for each in (size, -size))
        return tests.ruled_out(first)[0, 1], tests.ruled_out(second)[1, 0]


def simulate(world, rng, meanings=MEANINGS, looks=LOOKS):
    """One experiment. Per meaning: the look at which a side was first ruled out (0 for never) and
    which, and whether the truth ever was."""
    made = {
        "value": partial(Plain, 0.0),
        "worst-case": partial(Plain, None),
        "rated": partial(Raters, world.share),
        "asked": partial(Raters, world.share, asking=True),
    }
    own = {name: made[name]() for name in meanings}
    told, asking = kinds(asking=False)[-1], kinds(asking=True)[-1]
    step = world.horizon // looks
    first = dict.fromkeys((*own, "naive"), (0, -1))
    missed = dict.fromkeys(first, False)
    draws, passed = np.zeros((2, 3)), np.zeros((2, 3))
    for look in range(1, looks + 1):
        chances = world.at((look - 0.5) / looks)
        passed += chances
        counts = rng.multinomial(step, cell_chances(chances, told, asking=False))
        asked = rng.multinomial(step, cell_chances(chances, asking, asking=True))
        for name, sums in own.items():
            sums.add((asked if name == "asked" else counts).astype(float))
        for (drawn, model, outcome, _), many in zip(told, counts, strict=True):
            draws[model, outcome] += many * drawn
        for name in first:
            truth = difference(world, passed, name)
            if name == "naive":
                decided, wrong = naive(draws, 0.0), naive(draws, truth)
            else:
                decided, wrong = own[name].ruled_out(0.0), own[name].ruled_out(truth)
            missed[name] |= bool(wrong[0] or wrong[1])
            if first[name][0] == 0 and (decided[0] or decided[1]):
                first[name] = look, 0 if decided[0] else 1
    return {name: [*first[name], missed[name]] for name in first}


def difference(world, passed, name):
    """The true difference so far; passed: (2, 3) sums of the chances of each look."""
    down, up, none = passed.T
    if name == "value":
        each = up / (down + up + none)
    elif name == "worst-case":
        rates = np.array(world.rates)
        good = up / rates[:, 1]
        each = good / (good + down / rates[:, 0])
    else:
        each = up / (down + up)
    return float(each[0] - each[1])


def cell_chances(chances, of, asking):
    """The chance of every kind. of: (kinds, 4). Of those asked, so many rate that as many do in
    all, up to all of them."""
    drawn, model, outcome, asked = of.T
    if asking:
        rated = chances[:, :2] * np.minimum(1.0 / ASKED, 1.0 / chances[:, :2].sum(axis=1))[:, None]
        chances = np.column_stack([rated, 1.0 - rated.sum(axis=1)])
    chance = np.where(drawn, RATE / MODELS, np.where(model == 0, 1.0 - RATE, 0.0))
    chance = chance * np.maximum(chances[model, outcome], 0.0)
    return chance * np.where(asked, ASKED, 1.0 - ASKED) if asking else chance / chance.sum()


def naive(draws, truth):
    """(2,) whether a fixed-n test of the means among those who rate, looked at now, finds that the
    first model is more than `truth` better, or less; from 30 ratings of each on."""
    down, up, _ = draws.T
    rated = down + up
    if rated.min() < 30:
        return False, False
    mean = up / rated
    error = np.sqrt((mean * (1 - mean) / rated).sum())
    distance = mean[0] - mean[1] - truth
    reach = special.ndtri(1.0 - DELTA) * error
    return distance > reach, -distance > reach


def summary(world, runs, looks=LOOKS):
    """Per meaning: share decided, median of the requests that took, shares that were right of
    their own estimand and of all answers, and that ever missed the truth."""
    truth = {**world.truth, "naive": world.truth["rated"]}
    step, result = world.horizon // looks, {}
    for name in runs[0]:
        own = truth[name]
        look, side, missed = np.array([run[name] for run in runs], dtype=float).T
        decided = look > 0
        took = np.where(decided, look * step, np.inf)
        result[name] = {
            "decided": float(decided.mean()),
            "requests": float(np.median(took)),
            "right": right(side[decided], own),
            "of_all": right(side[decided], np.array(world.up)),
            "missed": float(missed.mean()),
        }
    return result


def right(sides, values):
    """The share of decisions for the larger of two values, None where there is none."""
    if not len(sides) or np.isclose(*values):
        return None
    return float((sides == np.argmax(values)).mean())


def study(world, runs, keep):
    """The summary of a world, from the file where it is kept."""
    name = f"{world.share:g} {world.name}".replace(" ", "_").replace(",", "")
    path = None if keep is None else keep / f"missing-{name}-{runs}.json"
    if path is not None and path.is_file():
        return json.loads(path.read_text())
    seeds = np.random.SeedSequence([15, int(1000 * world.share)]).spawn(runs)
    result = summary(world, [simulate(world, np.random.default_rng(seed)) for seed in seeds])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    return result


def requests(number, fixed):
    if not np.isfinite(number):
        return "–"
    if not np.isfinite(fixed):
        return f"{number:,.0f}"
    return f"{number:,.0f} ({number / fixed:.1f} ×)"


def page(results, runs):
    """Lines of the measured part. runs: of the worlds at MAIN, and of the others."""
    head = ["rated", "who rates", "meaning", "decided", "requests, median", "right of its own"]
    head += ["the better one of all", "ever missed"]
    rows = []
    for world, result in results:
        rated = world.truth["rated"]
        share = np.array([1.0 - each[2] for each in world.at(0.5)])
        fixed = fixed_requests(rated, share)
        for name, one in result.items():
            rows.append(
                [
                    percent(world.share),
                    world.name,
                    "naive mean among raters" if name == "naive" else f"`{name}`",
                    percent(one["decided"]),
                    requests(one["requests"], fixed),
                    percent(one["right"]),
                    percent(one["of_all"]),
                    percent(one["missed"]),
                ]
            )
    most, others = (f"{count} ({100 * np.sqrt(0.05 * 0.95 / count):.1f} points)" for count in runs)
    note = f"Runs of each world at {MAIN:.0%}, and the standard error of a share of 5%: {most}; of"
    note += f" each of the others: {others}."
    return [note, "", *table(head, rows)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help=f"of worlds where {MAIN:.0%} rate")
    parser.add_argument("--others", type=int, default=60, help="runs of the other worlds")
    parser.add_argument("--out", type=Path, help="also write the table into this page")
    parser.add_argument("--keep", type=Path, default=Path("build/missing"))
    parser.add_argument("--only", default="", help="worlds whose share and name begin with this")
    given = parser.parse_args()
    results = []
    for world in worlds():
        if f"{world.share:g} {world.name}".startswith(given.only):
            runs = given.runs if world.share == MAIN else given.others
            results.append((world, study(world, runs, given.keep)))
            print(world.share, world.name, json.dumps(results[-1][1]), flush=True)
    written = "\n".join(page(results, (given.runs, given.others)))
    print(written)
    if given.out:
        text = given.out.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        given.out.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}")


if __name__ == "__main__":
    main()
