"""What to do next: the plan that settles it, and the configuration to begin with."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from equipoise.agent.answers.wording import percent
from equipoise.agent.config.file import file_from_dict
from equipoise.agent.config.ingest import as_text
from equipoise.agent.errors import PlanError
from equipoise.agent.look.choosing import Chosen, Sightings
from equipoise.agent.look.findings import Findings, ModelRow
from equipoise.agent.planning.plan import Plan, make_plan
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request

LEAST_SHARE, LEAST_REQUESTS, MOST_COMPARED = 0.01, 20, 12
DIGITS = 4
"""Significant digits of the numbers that go into a plan, so that its command line is the plan."""
EFFECT = 0.05
"""The difference that is planned for where nobody names one, as a share of the reward's range."""
_SOFT = re.compile(r"[^A-Za-z0-9._:/@+\-]+")


class Settled(msgspec.Struct, frozen=True):
    """What would settle it. command: the same plan on the command line. compared: models of the
    log to their names in it. why: why there is no plan, "" where there is one."""

    why: str
    command: str
    compared: dict[str, str]
    left_out: list[str]
    plan: Plan | None


def compared(models: Sequence[ModelRow]) -> dict[str, str]:
    """The models worth comparing, by the names that a configuration can hold."""
    kept = [
        model.name
        for model in models
        if model.share >= LEAST_SHARE and model.requests >= LEAST_REQUESTS
    ][:MOST_COMPARED]
    names: dict[str, str] = {}
    for model in kept:
        name = _SOFT.sub("-", model).strip("-._:/@+")[:100] or "model"
        while name in names.values():
            name += "-2"
        names[model] = name
    return names


def settled(
    findings: Findings,
    *,
    effect: float | None = None,
    traffic: float | None = None,
    rate: float | None = None,
    minimise: bool = False,
) -> Settled:
    """The product's own plan for the numbers of the log. Raises PlanError where an option is
    wrong; where the log lacks what a plan needs, `why` says so."""
    names = compared(findings.models)
    rest = [model.name for model in findings.models if model.name not in names]
    reward = findings.reward
    fields: dict[str, Any] = {}
    if traffic is None:
        traffic = findings.traffic
    if len(names) < 2:
        why = "the log holds one model: there is nothing to compare it with"
        return Settled(why, "", names, rest, None)
    if reward is None:
        why = "no row has a reward: name its column with --reward, or give one to requests first"
        return Settled(why, "", names, rest, None)
    if traffic is None:
        why = "no row has a time: say how many requests an hour there are with --traffic"
        return Settled(why, "", names, rest, None)
    mean = _round(reward.mean)
    room = reward.high - mean if not minimise else mean - reward.low
    if effect is None:
        effect = _round(min(EFFECT * (reward.high - reward.low), room / 2.0), 2)
    if not room > 0:
        best = "lowest" if minimise else "highest"
        why = f"every reward is the {best} there can be: no model can be better"
        return Settled(why, "", names, rest, None)
    rows = [model for model in findings.models if model.name in names]
    fields |= {
        "names": list(names.values()),
        "traffic": _round(traffic),
        "reward_rate": mean,
        "effect": effect,
    }
    if rate is not None:
        fields["rate"] = rate
    if (reward.low, reward.high) != (0.0, 1.0):
        fields |= {"reward_low": reward.low, "reward_high": reward.high}
    if minimise:
        fields["maximise"] = False
    if not reward.binary:
        most = ((mean - reward.low) * (reward.high - mean)) ** 0.5
        fields["reward_sd"] = min(_round(reward.sd), _down(most))
    if all(model.cost is not None for model in rows):
        fields["prices"] = [_round(model.cost or 0.0) for model in rows]
    total = sum(model.requests for model in rows)
    fields["mix"] = [_round(model.requests / total) for model in rows]
    share = reward.rated / findings.used
    if share < 0.9995:
        fields |= {"rated": _round(share), "missing": "rated"}
    try:
        plan = make_plan(Problem.of_numbers(read_request(fields)))
    except PlanError as error:
        return Settled(str(error), _command(fields), names, rest, None)
    return Settled("", _command(fields), names, rest, plan)


def _round(number: float, digits: int = DIGITS) -> float:
    return float(f"{number:.{digits}g}")


def _down(number: float) -> float:
    """To four digits, never up."""
    rounded = _round(number)
    return rounded if rounded <= number else float(f"{number * (1 - 10.0**-DIGITS):.{DIGITS}g}")


def _command(fields: Mapping[str, Any]) -> str:
    names = fields["names"]
    words = ["equipoise plan", f"--models {','.join(names)}"]
    for name, value in fields.items():
        if name == "names":
            continue
        if name == "maximise":
            words.append("--minimise")
        elif name in ("prices", "mix"):
            pairs = ",".join(
                f"{who}={_plain(each)}" for who, each in zip(names, value, strict=True)
            )
            words.append(f"--{'price' if name == 'prices' else name} {pairs}")
        else:
            shown = value if isinstance(value, str) else _plain(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


def _plain(number: float) -> str:
    return repr(number).removesuffix(".0")


def configuration(
    findings: Findings, chosen: Chosen, seen: Sightings, settled: Settled, name: str, log: str
) -> str:
    """The TOML text to begin with: mode observe, the models of the log, and how to read it.

    Raises ConfigError where it would not be one, PlanError where the log has but one model.
    """
    names = settled.compared
    if len(names) < 2:
        raise PlanError("--config", ", ".join(names) or "no model", "a log with two models or more")
    lines = [
        f"# Made from {log} by `equipoise look`. In mode observe the daemon logs and randomizes",
        "# nothing. Read every line; then: equipoise serve --config THIS FILE --check",
        "",
        f"name = {_quoted(_SOFT.sub('-', name).strip('-._:/@+') or 'look')}",
    ]
    for model in findings.models:
        if model.name not in names:
            continue
        lines += ["", "[[models]]", f"name = {_quoted(names[model.name])}"]
        if model.cost is not None and model.cost >= 0:
            lines.append(f"price = {_plain(_round(model.cost))}  # USD a request, as measured")
    lines += _reward(findings)
    features, paths = _features(findings, chosen, seen)
    lines += features
    needed = None
    if settled.plan is not None and settled.plan.recommended is not None:
        needed = settled.plan.recommended.randomized.needed
    lines += [
        "",
        "[policy]",
        "rate = 0.1  # share of requests that will be randomized, once the mode is run",
        "",
        "[budget]",
        *(
            [f"requests = {int(needed)}  # randomized requests, as planned"]
            if needed is not None
            else ["# requests = 20000  # a hard stop, in randomized requests"]
        ),
        "",
        "[service]",
        'store = "equipoise.db"',
        'mode = "observe"  # "run" begins the experiment',
        "",
        "[capacity]",
        f"requests_per_second = {_plain(_round(max((findings.traffic or 36e3) / 3600.0, 1e-3)))}",
    ]
    if findings.reward is not None:
        share = min(1.0, max(findings.reward.rated / findings.used, 1e-6))
        lines.append(f"rated = {_plain(_round(share))}")
    lines += _mapping(chosen, names, paths)
    text = "\n".join(lines) + "\n"
    file_from_dict(tomllib.loads(text), source="the configuration made from this log")
    return text


def _reward(findings: Findings) -> list[str]:
    reward = findings.reward
    lines = [
        "",
        "# Declare the range that rewards can have, not the one that was seen.",
        "[reward]",
    ]
    low, high = (reward.low, reward.high) if reward else (0.0, 1.0)
    lines += [f"low = {low!r}", f"high = {high!r}"]
    lines.append("window = 86400  # seconds after which a reward counts as missing")
    if reward is not None and reward.rated < findings.used:
        share = percent(reward.rated / findings.used)
        lines.append(
            f'missing = "rated"  # {share} are rated: answers are about those (docs/missing.md)'
        )
    return lines


def _features(
    findings: Findings, chosen: Chosen, seen: Sightings
) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Tables of features, and the paths that fill them."""
    lines: list[str] = []
    paths: dict[str, dict[str, str]] = {"features": {}, "outputs": {}}

    def table(side: str, kind: str, path: str, *more: str) -> None:
        part = "context" if side == "features" else "outputs"
        name = re.sub(r"[^A-Za-z0-9_]+", "_", path.split(".")[-1]).strip("_")[:80]
        name = name if name[:1].isalpha() else f"x_{name}"
        taken = {*paths["features"], *paths["outputs"]}
        while name in taken:
            name += "_2"
        lines.extend(["", f"[[features.{part}]]", f'type = "{kind}"', f'name = "{name}"', *more])
        lines.append("missing = 0.0")
        paths[side][name] = path

    for column in chosen.columns:
        each = seen.paths.get(column.path)
        if each is None:
            continue
        if column.kind == "category":
            words = _words(each)
            if len(words) >= 2:
                listed = ", ".join(_quoted(word) for word in words)
                table("features", "category", column.path, f"values = [{listed}]", "other = true")
        elif column.kind == "length":
            path = column.path if each.kind == "text" else f"{column.path}[role=user][-1].content"
            if each.kind == "text" or column.path == chosen.roles.get("prompt"):
                statistics = '"words"'
                table("features", "text", path, f"statistics = [{statistics}]")
        elif column.kind == "number" and column.path != chosen.roles.get("input_tokens"):
            table("features", "number", column.path, "winsorize = true")
    for role in ("seconds", "output_tokens"):
        where = chosen.roles.get(role)
        if where is not None and not (role == "seconds" and chosen.milliseconds):
            table("outputs", "number", where, "low = 0.0", "log = true", "winsorize = true")
    return lines, paths


def _words(each: Any) -> list[str]:
    """Values of a category as the reader of logs spells them, the most frequent first."""
    words: list[str] = []
    for value, _ in each.values.most_common():
        try:
            word = as_text("", value)
        except ValueError:
            continue
        if (
            word
            and word not in words
            and word != "other"
            and len(word) <= 100
            and word.isprintable()
        ):
            words.append(word)
    return words[:32]


def _mapping(
    chosen: Chosen, names: Mapping[str, str], paths: Mapping[str, Mapping[str, str]]
) -> list[str]:
    roles = chosen.roles
    fields = {"routed": "model", "reward": "reward", "at": "at", "unit_id": "unit"}
    lines = [
        "",
        "# equipoise ingest LOG --config THIS FILE --mapping log",
        "[[ingest]]",
        'name = "log"',
    ]
    lines += ["", "[ingest.fields]"]
    lines += [f"{ours} = {_quoted(roles[role])}" for ours, role in fields.items() if role in roles]
    if chosen.rewards:
        lines += ["", "[ingest.rewards]"]
        lines += [f"{_quoted(word)} = {float(value)!r}" for word, value in chosen.rewards.items()]
    renamed = {theirs: ours for theirs, ours in names.items() if theirs != ours}
    if renamed:
        lines += ["", "[ingest.models]"]
        lines += [f"{_quoted(theirs)} = {_quoted(ours)}" for theirs, ours in renamed.items()]
    for side, table in paths.items():
        if table:
            lines += ["", f"[ingest.{side}]"]
            lines += [f"{name} = {_quoted(path)}" for name, path in table.items()]
    return lines


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
