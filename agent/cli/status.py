"""`equipoise status`: what is known, certified and decided."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.agent.cli.maintenance import STORE_HELP

if TYPE_CHECKING:
    from rich.table import Table

    from equipoise.agent.agent import Agent
    from equipoise.agent.answers.certifier import Certified


def status(
    store: Annotated[str, typer.Argument(help=STORE_HELP)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Show what a store knows about every model.

    The estimated value of each model, which one to serve, what is certified, and every check that
    needs attention.

    Example: equipoise status experiment.db
    """
    from equipoise.agent.agent import Agent
    from equipoise.agent.cli.maintenance import reading
    from equipoise.agent.errors import AgentError
    from equipoise.store.address import beside, shown

    with reading(store) as (opened, config):
        try:
            agent = Agent(config, opened, None)
            # Where a daemon looks unless its file names another; only the file says that.
            agent.state.killed = beside(store, ".kill").exists()
            facts = describe(agent)
        except (ValueError, OSError):
            raise
        except Exception as error:  # whatever is in the log, it is said in one line
            text = f"{shown(store)} cannot be summed up: {type(error).__name__}: {error}"
            raise AgentError(text) from error
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(facts).decode())
        return
    _print(facts)
    if facts["status"] in ("exploring", "restarted"):
        # A forecast simulates for seconds: it is not part of what is asked for at a glance.
        typer.echo(f"When it will be decided: equipoise plan --store {shown(store)}")


def describe(agent: Agent) -> dict[str, Any]:
    """Everything `status` prints, JSON-able: numbers in reward units, null where unknown."""
    import msgspec

    from equipoise.agent.answers.statements import NOTHING_DECIDED
    from equipoise.agent.lifecycle.eras import OBSERVING, read_stops
    from equipoise.agent.service.analyst.reports import current, eras, number
    from equipoise.store.batches import LEFT_OUT

    # The mode is the daemon's, and what its last decision stood under is in the store.
    notes = read_stops(agent.store)
    agent.state.observing_only = bool(notes) and notes[-1].off == OBSERVING
    estimates, answer, checks = current(agent)
    delivery, floors = (
        next(check.figures for check in checks.checks if check.name == name)
        for name in ("delivery", "floors")
    )
    budget, watermark = agent.controls.budget, estimates.watermark
    return {
        "experiment": estimates.experiment,
        "policy": f"{agent.config.policy.gate}+{agent.config.policy.assignment}",
        "rule_id": agent.rule.rule_id,
        "era": estimates.era,
        "eras": msgspec.to_builtins(eras(agent).eras),
        "log_rows": estimates.log_rows,
        "decisions": estimates.decisions,
        "losses": [gap.sentence for gap in agent.state.gaps],
        "randomized": estimates.randomized,
        "activity": agent.answers.activity().value,
        "ended": msgspec.to_builtins(agent.state.ended),
        "after_decision": agent.config.budget.after,
        "budget_left": None if budget is None else budget - estimates.randomized,
        "spent": msgspec.to_builtins(agent.answers.spent()),
        "spending": [
            {
                "resource": each.resource,
                "limit": each.limit,
                **{name: number(getattr(each, name)) for name in ("spent", "expected", "planned")},
            }
            for each in agent.answers.spending()
        ],
        "left_out": {each.name.lower(): int(floors[each.name.lower()] or 0) for each in LEFT_OUT},
        "waiting_for_outcomes": estimates.waiting,
        "held_back": watermark.held_back,
        "held_back_by": watermark.decision_id if watermark.held_back else None,
        "waiting": watermark.sentence,
        "status": answer.status,
        "status_models": answer.status_models,
        "status_sentence": answer.status_sentence,
        "certified": answer.certified,
        "certificate": certificate(agent.answers.certified()),
        "segments": [
            certificate(agent.answers.certified(part)) | {"status": segment.sentence}
            for part, segment in enumerate(estimates.segments, start=1)
        ],
        "checks": [
            {"check": check.name, "status": check.status, "sentence": check.sentence}
            for check in checks.checks
        ],
        "late_outcomes": agent.late,
        "recommendation": answer.action,
        "leaning": answer.leaning,
        "sentence": answer.sentence,
        "certified_sentence": answer.certified_sentence,
        "estimate_sentence": answer.estimate_sentence,
        "outlook_sentence": answer.outlook_sentence,
        "rating_sentence": estimates.rating_sentence,
        "activity_sentence": (
            NOTHING_DECIDED
            if answer.activity == "randomizing" and not agent.state.decisions
            else answer.activity_sentence
        ),
        "family": answer.family,
        "estimator": estimates.estimator,
        "reward_range": list(estimates.reward_range),
        "todays_routing": answer.routing_value,
        "todays_routing_standard_error": answer.routing_standard_error,
        "models": [
            {
                "model": model.model,
                "value": model.value,
                "standard_error": model.standard_error,
                "log_mean": model.log_mean,
                "log_standard_error": model.log_standard_error,
                "shown": msgspec.to_builtins(model.shown),
                "note": model.note,
                "compared": model.compared,
                "exp_rewards": model.exp_rewards,
                **{
                    name: int(delivery[name][index]) for name in ("decided", "delivered", "exposed")
                },
            }
            for index, model in enumerate(estimates.models)
        ],
    }


def certificate(certified: Certified) -> dict[str, Any]:
    """Certified answers as JSON types: `contrasts[a][b]` is the lower end of V(a) - V(b)."""
    from equipoise.agent.inference.certificate import FIXED_N
    from equipoise.agent.service.analyst.reports import number

    return {
        "segment": certified.segment,
        "sequence": certified.sequence.value,
        "reason": certified.reason,
        "assumptions": list(certified.assumptions),
        "drawn_by": certified.drawn or None,
        "uncertified": certified.uncertified or None,
        "requests": certified.rows,
        "randomized": certified.randomized,
        "missing_rewards": certified.missing,
        "rating": None if certified.rating is None else certified.rating.tolist(),
        "delta": certified.delta,
        "candidates": list(certified.names),
        "lower": certified.lower.tolist(),
        "upper": certified.upper.tolist(),
        "contrasts": certified.contrasts.tolist(),
        "comparison": {
            "label": FIXED_N,
            "half_widths": [[number(value) for value in row] for row in certified.fixed.tolist()],
        },
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from equipoise.agent.config.parts import ROUTING

    console = Console()
    console.print(
        f"[bold]{facts['experiment']}[/]: {facts['status']}, era {facts['era']},"
        f" under {facts['policy']}"
    )
    console.print(f"[bold]{facts['certified_sentence']}[/]", highlight=False)
    for name in ("estimate_sentence", "rating_sentence", "outlook_sentence", "activity_sentence"):
        if facts[name]:
            console.print(facts[name], highlight=False)
    certified = facts["certificate"]
    columns = (certified["candidates"], certified["lower"], certified["upper"])
    ends = {name: (low, high) for name, low, high in zip(*columns, strict=True)}
    names = ("model", "value ± 95%", "certified", "mean in the log ± 95%", "EXP rewards")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for row in facts["models"]:
        shown = row["shown"] or {"value": None, "standard_error": None, "family": ""}
        by = "" if shown["family"] in ("", facts["estimator"]) else f" by {shown['family']}"
        notes = [row["note"], "" if row["compared"] else "not compared"]
        note = ", ".join(filter(None, notes))
        table.add_row(
            row["model"] + (f" ({note})" if note else ""),
            _with_error(shown["value"], shown["standard_error"]) + by,
            _ends(*ends.pop(row["model"]), facts["reward_range"]),
            _with_error(row["log_mean"], row["log_standard_error"]),
            f"{row['exp_rewards']:,}",
        )
    for name, (low, high) in ends.items():
        value = ""
        if name == ROUTING:
            value = _with_error(facts["todays_routing"], facts["todays_routing_standard_error"])
        table.add_row(name, value, _ends(low, high, facts["reward_range"]), "", "")
    console.print(table)
    console.print(_cost_table(facts["spent"]))
    console.print(
        f"Certified on {certified['requests']:,} requests by the {certified['sequence']} sequence "
        f"({certified['reason']}), at all times together with probability"
        f" {1 - certified['delta']:.3g}."
    )
    if certified["drawn_by"] and not certified["uncertified"]:
        # Nothing here drew them: what they rest on is said with them.
        console.print(f"It rests on this: {'; '.join(certified['assumptions'])}.")
    if any(row["exposed"] < row["decided"] for row in facts["models"]):
        draws = (
            f"{row['model']} {row['decided']:,} decided, {row['delivered']:,} delivered,"
            f" {row['exposed']:,} exposed"
            for row in facts["models"]
        )
        console.print(f"Draws that are closed: {'; '.join(draws)}.")
    for segment in facts["segments"]:
        console.print(f"Segment {segment['segment']}: {segment['status']}")
    for era in facts["eras"][:-1]:
        answer = era["answer"]
        said = "what was certified of it was not kept" if answer is None else answer["sentence"]
        times = f"{_moment(era['opened_at'])} to {_moment(era['ended_at'])}"
        console.print(f"Era {era['era']} ({times}; ended: {era['ended_reason']}): {said}")
    for check in facts["checks"]:
        if check["status"] in ("watch", "alarm"):
            console.print(f"[bold]{check['status']}[/], {check['check']}: {check['sentence']}")
    for sentence in facts["losses"]:
        console.print(f"[bold]lost[/]: {sentence}")
    for each in facts["spending"]:
        if each["resource"] != "requests":
            console.print(
                f"Budget in {each['resource']}: {each['spent']:.4g} of {each['limit']:.4g} spent;"
                f" {each['planned']:.4g} was planned by now, and the draws were to spend"
                f" {each['expected']:.4g}."
            )
    budget_left = facts["budget_left"]
    here = " here" if certified["drawn_by"] else ""
    console.print(
        f"{facts['decisions']:,} decisions, {facts['randomized']:,} randomized{here}"
        + ("" if budget_left is None else f", budget for {budget_left:,} more")
        + f"; {facts['waiting']}"
    )
    late, repeated = facts["left_out"]["late"], facts["left_out"]["repeated"]
    if late or repeated:
        console.print(
            f"Of this era in no sum of draws: {late:,} that deciders shipped after they had lost"
            f" their lane, {repeated:,} of requests that another decider had decided."
        )


def _cost_table(spent: dict[str, Any]) -> Table:
    """What randomizing has cost so far, a row a model and one for all."""
    from rich.table import Column, Table

    priced = any(row["usd"] is not None for row in spent["models"])
    heads = ["randomized onto", "requests", "rewards", "gained ± 95%"]
    heads += ["USD", "USD extra"] if priced else []
    table = Table(*(Column(head, overflow="fold") for head in heads))
    for row in (*spent["models"], spent | {"model": "in all"}):
        rewards = "unknown" if row["rewards"] is None else f"{row['rewards']:,}"
        gained = _with_error(row["gained"], row["gained_error"], digits=1)
        money = [_amount(row[name]) for name in ("usd", "extra_usd")] if priced else []
        table.add_row(row["model"], f"{row['requests']:,}", rewards, gained, *money)
    return table


def _amount(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.4f}"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """A value and half of its 95% interval."""
    from equipoise.agent.estimators.base import NORMAL_95

    if value is None or error is None:
        return "unknown"
    return f"{value:,.{digits}f} ± {NORMAL_95 * error:,.{digits}f}"


def _ends(low: float, high: float, reward: list[float]) -> str:
    """Certified ends; one that is an end of what rewards can be is not known."""
    below, above = low > reward[0], high < reward[1]
    if below and above:
        return f"{low:.3f} … {high:.3f}"
    if below or above:
        return f"at least {low:.3f}" if below else f"at most {high:.3f}"
    return "unknown"
