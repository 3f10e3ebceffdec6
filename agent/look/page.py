"""What was found in a log, as sentences and tables, and as one HTML page of them.

The terminal prints the same parts in the same order.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files

import msgspec

from equipoise.agent.answers.wording import (
    brief,
    count,
    dollars,
    duration,
    figure,
    listed,
    percent,
    tenths,
)
from equipoise.agent.look.assignment import FALSE_ALARMS, SIZE, Sent, Split
from equipoise.agent.look.choosing import UNKNOWN
from equipoise.agent.look.crossing import crossed_words
from equipoise.agent.look.figures import days_figure, differences, p_value, signed
from equipoise.agent.look.findings import FEWEST_RATED, FROM_CACHE, Comparison, Findings, alike
from equipoise.agent.look.settling import Settled
from equipoise.agent.planning.plan import Plan
from equipoise.agent.planning.sentences import bill_words
from equipoise.store.words import plural, verb

SHOWN = 12
"""Rows of a table that the terminal prints."""
_ALLOWED = "default-src 'none'; style-src 'unsafe-inline'"


class Look(msgspec.Struct, frozen=True):
    """All of it. files: that were read. shape: of their rows, "" where it was guessed; why: which
    rows of it could be randomized. roles: what each column was taken for, with the reason. tested:
    columns; left_out: the others, with the reason. config: the file that was written."""

    files: list[str]
    date: str
    shape: str
    why: str
    roles: dict[str, tuple[str, str]]
    tested: list[str]
    left_out: dict[str, str]
    findings: Findings
    settled: Settled
    config: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the answer: sentences, a table, a figure as SVG, sentences below."""

    title: str
    notes: Sequence[str] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    below: Sequence[str] = ()
    figure: str = ""
    folded: bool = False


def summary(look: Look) -> list[str]:
    """The answer in a few sentences."""
    found = look.findings
    lines = [_verdict(found, look.settled.maximise)]
    random = [each for each in found.splits if each.verdict == "looks random"]
    if random:
        lines.append(_random_sentence(random[0]))
    lines += [crossed_words(each.where, each.crossed) for each in found.splits if each.crossed][:2]
    plan = look.settled.plan
    if plan is not None:
        lines.append(_settling(plan))
    elif look.settled.why:
        lines.append(f"No plan can be made: {look.settled.why}.")
    return lines


def _settling(plan: Plan) -> str:
    """What it takes, in short; the plan's own sentence says it all."""
    best = plan.recommended
    if best is None:
        return f"What would settle it: {_once(plan.sentence)}"
    bill = None if best.bill is None else best.bill.needed
    time = "" if best.hours is None else f", {duration(best.hours.needed)} of this traffic"
    return (
        f"What would settle it: {count(best.randomized.needed)} randomized requests"
        f" ({percent(best.rate)} of all{time}{bill_words(bill, best.extra is not None)}), to find a"
        f" model that is better by {figure(best.effect)} with {percent(plan.power)} power."
    )


def _verdict(found: Findings, maximise: bool) -> str:
    if len(found.models) < 2:
        name = found.models[0].name if found.models else "no model"
        return f"The log holds one model, {name}: it cannot say how another one would have done."
    known = [model for model in found.models if model.mean is not None]
    if len(known) < 2:
        return (
            f"{_rewards(found)}: this log can say what the models cost and who gets which, not how"
            " good they are."
        )
    rated = [model for model in known if model.rated >= FEWEST_RATED]
    if len(rated) < 2:
        few = listed([f"{count(each.rated)} of {each.name}" for each in known[:4]])
        return (
            f"Too few rows have a reward to compare the models: {few};"
            f" {FEWEST_RATED} of each of two models are the least."
        )
    first, *others = sorted(rated, key=lambda each: (each.mean or 0.0) * (-1 if maximise else 1))
    mean, best = first.mean or 0.0, "highest" if maximise else "lowest"
    ties = [each for each in others if math.isclose(each.mean or 0.0, mean, rel_tol=1e-9)]
    if len(ties) == len(others):
        who = "Both models" if len(rated) == 2 else f"All {len(rated)} models"
        return f"{who} have the same mean reward in the log, {figure(mean)}: it tells none apart."
    if ties:
        who = listed([first.name, *(each.name for each in ties[:3])])
        who += f" and {len(ties) - 3} more" if len(ties) > 3 else ""
        naive = f"{who} have the {best} mean reward in the log, {figure(mean)} each"
    else:
        naive = (
            f"{first.name} has the {best} mean reward in the log, {figure(mean)}, before"
            f" {others[0].name} with {figure(others[0].mean or 0.0)}"
        )
    chance = alike(rated) if len(rated) > 2 else 0.0
    if chance >= 0.05:
        return (
            f"{naive}, but one of {len(rated)} models is first by chance alone: these means differ"
            f" no more than equal ones would (p = {p_value(chance)})."
        )
    everything = next((each for each in found.splits if each.where == "all requests"), None)
    if everything is not None and everything.verdict == "looks random":
        return (
            f"{naive}. No column says who was sent where, so that this may be a difference between"
            " the models, if something drew them at random."
        )
    if everything is not None and everything.crossed is not None:
        return (
            f"{naive}. Several models answered the same {everything.crossed.column}: compare them"
            " on those that all of them have."
        )
    drawn = {each.where for each in found.splits if each.verdict == "looks random"}
    clear = [each for each in found.sent if each.p is not None and each.p < 0.05]
    causes = [each for each in clear if each.column not in drawn]
    if not causes:
        return f"{naive}. That is a difference between requests, too: nothing says they are alike."
    names = listed([each.column for each in causes[:3]])
    more = f" and {len(causes) - 3} more" if len(causes) > 3 else ""
    return (
        f"{naive}, but that is no effect: {names}{more} {verb(len(causes), 'goes', 'go')} together"
        " with who is sent where, so the two means are of different requests."
    )


def _rewards(found: Findings) -> str:
    if found.reward is None:
        return "No row has a reward"
    return f"{plural(found.reward.rated, 'row')} of one model have a reward"


def _random_sentence(split: Split) -> str:
    shares = listed([f"{name} {tenths(share)}" for name, share in split.shares.items()])
    where = split.where.capitalize() if not split.column else f"Requests where {split.where}"
    per = ", one draw for each user" if split.sticky else ""
    seen = f"{100 * split.detectable:.0f} points between two halves would have been seen with 80%"
    return (
        f"{where} look like a random split ({shares}{per}; {count(split.rows)} rows):"
        f" p = {p_value(split.p)} for the one of {plural(split.columns, 'column')} that differs"
        f" most, and {seen}. If it was one,"
        " declare it and they count as EXP."
    )


def parts(look: Look) -> list[Part]:
    """Everything below the answer, in order."""
    found = look.findings
    return [
        _traffic(found),
        _flattery(found),
        *([_sent(found)] if found.sent else []),
        _splits(look),
        _settled(look.settled),
        _begin(look),
        *_read(look),
    ]


def _traffic(found: Findings) -> Part:
    titles = ["model", "requests", "share"]
    models = found.models
    columns = [
        ("failed", [count(each.failed) if each.failed else "" for each in models]),
        ("rated", [count(each.rated) if each.rated else "" for each in models]),
        ("USD each", ["" if each.cost is None else dollars(each.cost) for each in models]),
        ("USD in all", ["" if each.spent is None else dollars(each.spent) for each in models]),
        ("tokens in", [_mean(each.input_tokens) for each in models]),
        ("tokens out", [_mean(each.output_tokens) for each in models]),
        ("seconds", [_mean(each.seconds) for each in models]),
        ("p95", [_mean(each.slow) for each in models]),
    ]
    columns = [(name, cells) for name, cells in columns if any(cells)]
    rows = [
        [each.name, count(each.requests), percent(each.share), *(cells[at] for _, cells in columns)]
        for at, each in enumerate(models)
    ]
    notes = [f"{plural(found.rows, 'row')}, {found.used:,} of them answered by a known model."]
    if found.first is not None and found.last is not None and found.hours:
        notes[0] += (
            f" From {_when(found.first)} to {_when(found.last)} (UTC), {duration(found.hours)}:"
            f" {figure(found.traffic or 0.0)} an hour."
        )
    if found.users is not None:
        notes.append(f"{plural(found.users, 'user')}{_of_sample(found)}.")
    below = []
    if found.reasons:
        reasons = ", ".join(f"{number:,} {name}" for name, number in found.reasons.items())
        below.append(f"Rows that do not count: {reasons}.")
    for name, number in found.unreadable.items():
        why = f"of {name} could not be read"
        if name.endswith(" below 0"):
            why = f"of {name.removesuffix(' below 0')} {verb(number, 'is', 'are')} below 0"
        below.append(
            f"{plural(number, 'value')} {why} and {verb(number, 'counts', 'count')} as none."
        )
    if FROM_CACHE in found.reasons:
        below.append("An answer from a cache was written by another request's model.")
    return Part(
        "Models and traffic",
        notes,
        [*titles, *(name for name, _ in columns)],
        rows,
        below,
        days_figure(found),
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _mean(value: float | None) -> str:
    return "" if value is None else figure(value)


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _of_sample(found: Findings) -> str:
    if found.sampled >= found.used:
        return ""
    return f" among the {found.sampled:,} rows that were drawn for tests and medians"


def _flattery(found: Findings) -> Part:
    title = "What the log flatters, and why it cannot be trusted"
    rated = [each for each in found.models if each.mean is not None]
    if found.reward is None or not rated:
        return Part(title, [f"{_rewards(found)}: there are no means to be fooled by."])
    share = found.reward.rated / found.used
    notes = [
        "A mean is taken over the requests that a model happened to get. A difference of two means"
        " is what the models do and what their requests were, and no log alone tells these apart.",
        f"{percent(share)} of the requests have a reward"
        + (
            ": the means are of those whose users rate, who may rate for a reason."
            if share < 1
            else "."
        ),
    ]
    rows = [
        [
            each.name,
            count(each.rated),
            figure(each.mean or 0.0),
            f"{figure(each.low or 0.0)} to {figure(each.high or 0.0)}",
        ]
        for each in rated
    ]
    notes += [line for each in found.comparisons for line in compared(each)]
    few = [each.name for each in rated if each.rated < FEWEST_RATED]
    if few:
        notes.append(
            f"No difference is shown for {_some(few)}: fewer than {FEWEST_RATED} rated requests."
        )
    head = ("model", "rated", "naive mean", "95%, if requests were alike")
    return Part(title, notes, head, rows, figure=differences(found.comparisons))


def compared(each: Comparison) -> list[str]:
    """What is said of two models: as the log has it, among requests alike, and how far a hidden
    cause would have to go."""
    naive = f"{each.model} against {each.against}: {signed(each.naive)} as the log has it"
    naive += f" (95%: {signed(each.low)} to {signed(each.high)})"
    if each.adjusted is None or each.adjusted_low is None or each.adjusted_high is None:
        return [
            f"{naive}; the columns leave no requests that could have gone to either, so nothing can"
            " be said of requests that are alike."
        ]
    line = (
        f"{naive}; {signed(each.adjusted)} (95%: {signed(each.adjusted_low)} to"
        f" {signed(each.adjusted_high)}) among requests that are alike in every column tested."
    )
    if each.adjusted_low <= 0.0 <= each.adjusted_high:
        return [f"{line} The log does not even say which of the two is ahead."]
    share = percent(each.robustness or 0.0)
    known = ""
    if each.strongest:
        known = (
            f" For comparison: {each.strongest}, the strongest column, explains"
            f" {percent(each.explains_choice)} and {percent(each.explains_reward)}."
        )
    return [
        f"{line} A cause that is in no column and explains {share} of what is left of both, the"
        f" choice of the model and the reward, would bring this to 0, and a little more would turn"
        f" it round (robustness value of Cinelli and Hazlett, 2020).{known}"
    ]


def _sent(found: Findings) -> Part:
    tested = [each for each in found.sent if each.p is not None]
    clear = [each for each in tested if each.p is not None and each.p < 0.05]
    about = "clustered by user, " if found.users is not None else ""
    notes = [
        f"The model goes together with {len(clear)} of {plural(len(tested), 'column')} (tests of"
        f" independence, {about}corrected for their number by Holm's method; strength is Cramér's"
        " V, 0 to 1).",
    ]
    rows = []
    for each in found.sent:
        p = "not tested" if each.p is None else p_value(each.p)
        rows.append([each.column, figure(each.strength), p, extremes(each) or each.note])
    return Part("Who is sent where", notes, ("column", "strength", "p", "who gets what"), rows)


def extremes(each: Sent) -> str:
    """The two levels whose shares of a model differ most, in words."""
    levels = [level for level in each.levels if level.rows >= 20]
    if len(levels) < 2:
        return ""
    names = list(levels[0].shares)

    def spread(name: str) -> float:
        shares = [level.shares[name] for level in levels]
        return max(shares) - min(shares)

    name = max(names, key=spread)
    low = min(levels, key=lambda level: level.shares[name])
    high = max(levels, key=lambda level: level.shares[name])
    return (
        f"{name}: {tenths(low.shares[name])} where {low.label}, {tenths(high.shares[name])} where"
        f" {high.label}"
    )


def _splits(look: Look) -> Part:
    found = look.findings
    title = "Which rows look randomized already"
    if not found.splits:
        return Part(title, ["There are too few rows or models to ask."])
    random = [each for each in found.splits if each.verdict == "looks random"]
    tried = listed([f"{number} {name}" for name, number in found.tried.items()])
    notes = [
        f"{plural(sum(found.tried.values()), 'part')} of the log tried: {tried}. A part looks"
        " random where the model depends on no column. A test that sees nothing proves nothing:"
        " what no column holds, no test sees.",
        f"Size: a true random split is missed with probability {percent(SIZE)}. Power: that any"
        " part passes which is sent as the whole log is has probability"
        f" {percent(FALSE_ALARMS)} at most; parts too small for that are called too few.",
    ]
    if not random:
        notes.insert(0, "No part of this log looks like a random split.")
    shown = [each for each in found.splits if each.verdict != "not random"][:30]
    shown += [each for each in found.splits if each.verdict == "not random"][
        : max(0, 6 - len(shown))
    ]
    rows = [
        [
            each.where,
            each.verdict,
            count(each.rows),
            ", ".join(f"{name} {tenths(share)}" for name, share in each.shares.items()),
            f"{p_value(each.p)} ({each.worst})" if each.worst else "",
            f"{100 * each.detectable:.0f} points",
        ]
        for each in shown
    ]
    head = ("rows", "verdict", "how many", "split", "smallest p", "seen with 80%")
    below = [line for each in random[:3] for line in declared(each, look)]
    return Part(title, notes, head, rows, below)


def declared(split: Split, look: Look) -> list[str]:
    """What to declare so that these rows count as EXP."""
    how = "unit" if split.sticky else "request"
    if split.value == "propensity" and not split.column:
        path = look.roles["propensity"][0]
        return [
            f"{path}: if it is the probability with which something drew the model, declare it:"
            f' [[ingest]] kind = "decisions", drawn = "{how}", fields.propensity = "{path}".'
        ]
    names = look.settled.compared
    shares = ", ".join(
        f'"{names.get(name, name)}" = {share:.3g}' for name, share in split.shares.items()
    )
    where = "these rows" if split.column else "the log"
    also = f" (the same rows: {', '.join(split.same)})" if split.same else ""
    return [
        f"{split.where}{also}: if something drew the model for {where} with fixed probabilities,"
        f' put them into a file of their own and declare it: [[ingest]] kind = "decisions", drawn ='
        f' "{how}", shares = {{{shares}}} with the probabilities that were set, not those that were'
        " seen. Then `equipoise ingest` counts them as EXP."
    ]


_REASONS = re.compile(r"\(((?:[\w-]+: [^;()]+)(?:; [\w-]+: [^;()]+)+)\)")


def _once(sentence: str) -> str:
    """The planner's sentence, with a reason that all policies share said once."""

    def one(match: re.Match[str]) -> str:
        reasons = {each.partition(": ")[2] for each in match[1].split("; ")}
        return f"({reasons.pop()})" if len(reasons) == 1 else match[0]

    return _REASONS.sub(one, sentence)


def _settled(settled: Settled) -> Part:
    title = "What would settle it"
    plan = settled.plan
    if plan is None:
        return Part(title, [f"No plan: {settled.why}."])
    rows = []
    policy = plan.recommended.policy if plan.recommended else ""
    effects = [row for row in plan.effects if not policy or row.policy == policy]
    for row in sorted(effects, key=lambda each: each.effect):
        needed = row.randomized.needed
        if needed is None:
            rows.append([figure(row.effect), row.policy, "cannot know", "", ""])
            continue
        bill = None if row.bill is None else row.bill.needed
        rows.append(
            [
                figure(row.effect),
                row.policy,
                count(needed),
                brief(row.hours.needed if row.hours else None),
                "" if bill is None else dollars(bill),
            ]
        )
    notes = [_once(plan.sentence), *([plan.billed] if plan.billed else [])]
    left = settled.left_out
    if left:
        notes.append(
            f"Compared are the {len(settled.compared)} models with the most requests. Left out:"
            f" {_some(left)}."
        )
    below = [f"The same plan, to change: {settled.command}"]
    head = ("difference", "policy", "randomized requests", "time", plan.money_name)
    return Part(title, notes, head, rows, below)


def _begin(look: Look) -> Part:
    if len(look.settled.compared) < 2:
        return Part("How to begin", ["A configuration needs a log with two models or more."])
    if look.config is None:
        notes = [
            "--config equipoise.toml writes a configuration that only observes: the daemon answers"
            " with the model that the router names, and logs."
        ]
        return Part("How to begin", notes)
    files_ = " ".join(look.files)
    return Part(
        "How to begin",
        [
            f"{look.config} compares {', '.join(look.settled.compared.values())} in mode observe:"
            " the daemon answers with the model that the router names, and logs."
        ],
        below=[
            f"equipoise serve --config {look.config} --check",
            f"equipoise ingest {files_} --config {look.config} --mapping log",
        ],
    )


def _read(look: Look) -> list[Part]:
    rows = [[role, path, how] for role, (path, how) in look.roles.items()]
    notes = [
        f"Rows of {look.shape.removeprefix('rows of ')}: {look.why}."
        if look.shape
        else "The columns were guessed."
    ]
    notes.append(f"Tested: {', '.join(look.tested) or 'no column'}.")
    unknown = [path for path, reason in look.left_out.items() if reason == UNKNOWN]
    if unknown:
        notes.append(
            f"Not tested: {_some(unknown)}. Say which is the cost, the seconds or the reward, with"
            " --cost, --seconds and --reward; the others then count as known before the model."
        )
    parts = [Part("How the log was read", notes, ("as", "column", "why"), rows)]
    if look.left_out:
        by: dict[str, list[str]] = {}
        for path, reason in look.left_out.items():
            by.setdefault(reason, []).append(path)
        left = [[reason, ", ".join(paths)] for reason, paths in by.items()]
        parts.append(
            Part("Columns that were not tested", (), ("reason", "columns"), left, folded=True)
        )
    return parts


def as_page(look: Look) -> str:
    """The whole page."""
    style = (
        files("equipoise.agent.planning.output").joinpath("page.css").read_text(encoding="utf-8")
    )
    names = ", ".join(look.files)
    title = html.escape(f"A look at {names}"[:200])
    answer = "".join(f"<p>{html.escape(line)}</p>" for line in summary(look))
    body = "".join(_section(part) for part in parts(look))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_ALLOWED}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}{_STYLE}</style></head><body><main>"
        f'<h1>{title}</h1><p class="note">{look.date}; {plural(look.findings.rows, "row")}</p>'
        f'<div class="answer">{answer}</div>{body}</main></body></html>\n'
    )


_STYLE = """
h1, p, summary { overflow-wrap: anywhere; }
.scroll {
  background:
    linear-gradient(to left, var(--card) 1rem, transparent 2rem) local,
    linear-gradient(to left, var(--muted), transparent 0.6rem) right / 100% 100% no-repeat;
}
@media (max-width: 34rem) { td.words, th.words { min-width: 6.5rem; } }
td.words, th.words {
  text-align: left;
  white-space: normal;
  min-width: 8rem;
  overflow-wrap: anywhere;
}
p.command { font-family: ui-monospace, monospace; font-size: 0.85rem; overflow-wrap: anywhere; }
"""
WORDS = frozenset(
    {"split", "who gets what", "verdict", "smallest p", "column", "columns", "why", "policy"}
)


def _section(part: Part) -> str:
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in part.notes)
    below = "".join(
        f'<p class="command">{html.escape(line)}</p>'
        if line.startswith("equipoise ")
        else f'<p class="note">{html.escape(line)}</p>'
        for line in part.below
    )
    body = f"{notes}{part.figure}{_table(part)}{below}"
    if part.folded:
        return f"<details><summary>{html.escape(part.title)}</summary>{body}</details>"
    return f"<section><h2>{html.escape(part.title)}</h2>{body}</section>"


def _table(part: Part) -> str:
    if not part.rows:
        return ""
    words = [' class="words"' if name in WORDS else "" for name in part.head]
    head = "".join(
        f"<th{kind}>{html.escape(name)}</th>" for kind, name in zip(words, part.head, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(words, row, strict=True)
        )
        + "</tr>"
        for row in part.rows
    )
    head = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
