"""Tables of the report as HTML, and what was run as a list of definitions."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from equipoise.agent.answers.recommendation import KEEP_ROUTING
from equipoise.replay.results.averages import NAIVE
from equipoise.replay.results.headline import minus, percent, printable, reward

SAID = {"obs", "requests", "exp_rate", "budget", "seeds"}
"""Options that have a sentence of their own."""
NAMES = {"delta": "Error rate δ", "epsilon": "Tolerance ε"}


def facts(
    meta: Mapping[str, Any], policies: Sequence[str] = (), estimators: Sequence[str] = ()
) -> str:
    """Definitions as HTML of all that `meta` knows; what it does not know is left out."""
    options: Mapping[str, Any] = meta.get("options", {})
    scenarios = meta.get("scenarios", ())
    found = {
        "Benchmark": _benchmark(meta),
        "Source": meta.get("source", ""),
        "Models": ", ".join(meta.get("models", ())),
        "Contexts": _counted(meta.get("contexts"), ""),
        "Left out": ", ".join(f"{why}: {n}" for why, n in meta.get("exclusions", {}).items()),
        "Usage log": _counted(options.get("obs"), " requests, served as routed, before the start"),
        "Live requests": _counted(options.get("requests"), " a run", "up to "),
        "Randomized": _randomized(options),
        "Runs": _counted(options.get("seeds"), " for every setting, policy and estimator"),
        "Policies": ", ".join(policies),
        "Estimators": ", ".join(estimators),
        "Alignment α": _listed(each["alpha"] for each in scenarios),
        "Confounding ω": _listed(each["confounding"] for each in scenarios),
        **_others(options),
    }
    return "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(fact)}</dd></div>"
        for name, fact in found.items()
        if fact
    )


def _benchmark(meta: Mapping[str, Any]) -> str:
    title, name = meta.get("title"), meta.get("benchmark")
    return f"{title} ({name})" if title and name else str(title or name or "")


def _counted(value: Any, after: str, before: str = "") -> str:
    """A count with its words; nothing where there is no single count."""
    if isinstance(value, (list, tuple)):
        return before + ", ".join(f"{each:,}" for each in value) + after if value else ""
    return "" if value is None else f"{before}{value:,}{after}"


def _randomized(options: Mapping[str, Any]) -> str:
    rate, budget = options.get("exp_rate"), options.get("budget")
    parts = [] if rate is None else [f"{100 * rate:.3g}% of the live requests"]
    whose = "requests" if rate is None else "of them"
    parts += [] if budget is None else [f"{_counted(budget, '')} {whose} at most"]
    return ", ".join(parts)


def _others(options: Mapping[str, Any]) -> dict[str, str]:
    """Options without a sentence of their own, by name, where they say something."""
    found = {}
    for name, value in options.items():
        if name in SAID or value is None or value in ([], (), {}, ""):
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
        found[NAMES.get(name, name.replace("_", " ").capitalize())] = shown
    return found


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{each:g}" for each in dict.fromkeys(numbers))


Row: TypeAlias = Mapping[str, Any]
Form: TypeAlias = Callable[[float], str]
UNKNOWN = '<span class="unknown" title="unknown">–</span>'


def text(value: object) -> str:
    """Text for HTML, quotes included, so that it may stand in an attribute."""
    return html.escape(printable(str(value)), quote=True)


def money(value: float) -> str:
    return minus(f"{value:,.2f}")


def count(value: float) -> str:
    return f"{value:,.0f}"


def tenth(value: float) -> str:
    return minus(f"{value:,.1f}")


def figure(value: Mapping[str, Any], form: Form = reward) -> str:
    """A mean with its interval below."""
    if value["mean"] is None:
        return UNKNOWN
    shown = f'<span class="number">{form(value["mean"])}</span>'
    if value["interval"] is None:
        return shown
    low, high = value["interval"]
    return f'{shown} <span class="interval">[{form(low)}, {form(high)}]</span>'


def verdict_table(rows: Sequence[Row], policies: Sequence[str], estimators: Sequence[str]) -> str:
    """Who recommends what in the end: estimators down, policies across."""
    found = {(row["policy"], row["estimator"]): row for row in rows}
    lines = []
    for estimator in estimators:
        cells = (found.get((policy, estimator)) for policy in policies)
        lines.append(
            f'<tr class="{"naive" if estimator == NAIVE else "family"}">'
            f"{_head(estimator)}"
            + "".join("<td>not run</td>" if row is None else _verdict(row) for row in cells)
            + "</tr>"
        )
    return table(["estimator", *policies], lines, "verdicts")


def _verdict(row: Row) -> str:
    word, runs, right = row["verdict"], row["runs"], row["right"]["mean"]
    if word == "silent":
        return '<td class="silent"><strong>no answer</strong></td>'
    often = f", {round(runs * right)} of {runs} right" if 0 < right < 1 else ""
    keep = row["action"] == KEEP_ROUTING
    advice = '<div class="advice">advises to keep today’s routing</div>' if keep else ""
    return (
        f'<td class="{word}"><strong>{word}</strong> {text(row["recommended"])}'
        f'<div class="detail">regret {figure(row["regret"])}{often}</div>{advice}</td>'
    )


def full_table(rows: Sequence[Row], settled: Sequence[str]) -> str:
    """Every number of a scenario with its interval. settled: the regrets asked for."""
    headings = [
        *("policy × estimator", "recommends", "right", "regret", "regret of the advice"),
        "average regret",
        *(f"EXP until regret ≤ {limit}" for limit in settled),
        *("bias", "RMSE", "RMSE of contrasts", "randomized", "spend (USD)", "harm"),
    ]
    return table(headings, [_full_row(row, settled) for row in rows], "full")


def _full_row(row: Row, settled: Sequence[str]) -> str:
    said = UNKNOWN if row["recommended"] is None else text(row["recommended"])
    share = row["recommended_share"]
    often = "" if share == 1 else f' <span class="interval">{percent(share)} of runs</span>'
    cells = [
        said + often,
        figure(row["right"], percent),
        figure(row["regret"]),
        figure(row["regret_action"]),
        figure(row["regret_average"]),
        *(_settled(row["settled"][limit]) for limit in settled),
        figure(row["bias"], signed),
        figure(row["rmse"]),
        figure(row["rmse_contrast"]),
        figure(row["exp_used"], count),
        figure(row["spend"], money),
        figure(row["harm"], tenth),
    ]
    return (
        f'<tr><th scope="row">{text(row["policy"])} × {text(_name(row["estimator"]))}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def signed(value: float) -> str:
    """A reward with its sign, unless it rounds to zero."""
    shown = reward(value)
    return f"+{shown}" if value > 0 and shown != reward(0.0) else shown


def _settled(value: Mapping[str, Any]) -> str:
    never = '<span class="unknown">not reached</span>'
    shown = never if value["exp"] is None else f'<span class="number">{count(value["exp"])}</span>'
    if value["interval"] is None:
        return shown
    low, high = ("never" if end is None else count(end) for end in value["interval"])
    return (
        shown
        if low == high == "never"
        else f'{shown} <span class="interval">[{low}, {high}]</span>'
    )


def certified_table(rows: Sequence[Row]) -> str:
    """What each policy used, and what it certified. Streams that are the same share a line."""
    headings = [
        *("policy", "randomized", "spend (USD)", "harm", "certified", "EXP until certified"),
        *("wrongly", "half-width", "covered in the end", "ever missed"),
    ]
    lines = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        streams: dict[str, list[str]] = {}
        for row in rows:
            if row["policy"] == policy and row["estimator"] != NAIVE:
                streams.setdefault(_certified_cells(row), []).append(row["estimator"])
        for cells, estimators in streams.items():
            steered = f", steered by {', '.join(estimators)}" if len(streams) > 1 else ""
            lines.append(f'<tr><th scope="row">{text(policy + steered)}</th>{cells}</tr>')
    return table(headings, lines, "certified")


def _certified_cells(row: Row) -> str:
    cells = (
        figure(row["exp_used"], count),
        figure(row["spend"], money),
        figure(row["harm"], tenth),
        figure(row["decided"], percent),
        figure(row["decided_at"], count),
        figure(row["decided_wrong"], percent),
        figure(row["width"]),
        figure(row["covered"], percent),
        figure(row["ever_miscovered"], percent),
    )
    return "".join(f"<td>{cell}</td>" for cell in cells)


def _head(estimator: str) -> str:
    return f'<th scope="row">{text(_name(estimator))}</th>'


def _name(estimator: str) -> str:
    return "usage log alone" if estimator == NAIVE else estimator


def table(
    headings: Sequence[str], lines: Iterable[str], kind: str, words: Collection[int] = ()
) -> str:
    """A table that scrolls inside its own box. headings are escaped here, lines are HTML.

    words: the columns that hold words and no numbers.
    """
    head = "".join(
        f'<th scope="col" class="{"word" if column in words else ""}">{text(heading)}</th>'
        for column, heading in enumerate(headings)
    )
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
