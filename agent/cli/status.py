"""`equipoise status`: what is known, certified and decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from equipoise.agent.agent import Agent
    from equipoise.agent.answers.certifier import Certified


def status(
    store: Annotated[Path, typer.Argument(help="The store (a SQLite file).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say what a store knows: values of every model, what to serve, what is certified.

    Example: equipoise status experiment.db
    """
    from equipoise.agent.agent import Agent
    from equipoise.agent.cli.stores import reading
    from equipoise.agent.errors import AgentError

    with reading(store) as (opened, config):
        try:
            facts = describe(Agent(config, opened, None))
        except (ValueError, OSError):
            raise
        except Exception as error:  # whatever is in the log, it is said in one line
            text = f"{store} cannot be summed up: {type(error).__name__}: {error}"
            raise AgentError(text) from error
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(facts).decode())
        return
    _print(facts)


def describe(agent: Agent) -> dict[str, Any]:
    """Everything `status` says, JSON-able: numbers in reward units, null where unknown."""
    import numpy as np

    from equipoise.agent.answers.policy_snapshot import sample_moments
    from equipoise.agent.estimators.ipw import naive_log

    view = agent.answers.view()
    family = agent.config.policy.estimator
    estimate, _ = agent.answers.within_certified(agent.answers.estimates([family])[family])
    answer = agent.answers.recommendation()
    logged = naive_log(view.moments)
    counts, _, _ = sample_moments(view.moments.arms)
    budget = agent.config.budget.requests
    behind, checks = agent.answers.behind(), agent.answers.checks()
    drawn = next(check.figures for check in checks if check.name == "delivery")
    said, winner = agent.answers.status(), agent.answers.certified_winner()
    return {
        "experiment": agent.config.name,
        "policy": f"{agent.config.policy.gate}+{agent.config.policy.assignment}",
        "rule_id": agent.rule.rule_id,
        "era": agent.rule.era,
        "log_rows": agent.light.next_seq,
        "decisions": agent.state.decisions,
        "losses": [gap.sentence for gap in agent.state.gaps],
        "randomized": agent.light.randomized,
        "budget_left": None if budget is None else budget - agent.light.randomized,
        "spending": [
            {
                "resource": each.resource,
                "limit": each.limit,
                **{name: number(getattr(each, name)) for name in ("spent", "expected", "planned")},
            }
            for each in agent.answers.spending()
        ],
        "waiting_for_outcomes": behind.waiting,
        "held_back": behind.held,
        "held_back_by": f"d{behind.number}" if behind.held else None,
        "waiting": behind.sentence,
        "status": said.state.value,
        "status_models": list(said.models),
        "status_sentence": said.sentence,
        "certified": winner,
        "certificate": certificate(agent.answers.certified()),
        "segments": [
            certificate(agent.answers.certified(part))
            | {"status": agent.answers.status(part).sentence}
            for part in range(1, agent.state.certifier.parts)
        ],
        "checks": [
            {"check": check.name, "status": check.status, "sentence": check.sentence}
            for check in checks
        ],
        "late_outcomes": agent.late,
        "recommendation": answer.action,
        "leaning": answer.leaning,
        "sentence": answer.sentence,
        "estimator": family,
        "todays_routing": number(answer.routing_value),
        "models": [
            {
                "model": name,
                "value": number(estimate.values[index]),
                "standard_error": number(float(np.sqrt(estimate.covariance[index, index]))),
                "log_mean": number(logged.values[index]),
                "exp_rewards": int(counts[index]),
                **{what: int(drawn[what][index]) for what in ("decided", "delivered", "exposed")},
            }
            for index, name in enumerate(agent.models)
        ],
    }


def certificate(certified: Certified) -> dict[str, Any]:
    """Certified answers as JSON types: `contrasts[a][b]` is the lower end of V(a) - V(b)."""
    from equipoise.agent.inference.fixed import LABEL

    return {
        "segment": certified.segment,
        "sequence": certified.sequence.value,
        "reason": certified.reason,
        "assumptions": list(certified.assumptions),
        "requests": certified.rows,
        "randomized": certified.randomized,
        "missing_rewards": certified.missing,
        "delta": certified.delta,
        "candidates": list(certified.names),
        "lower": certified.lower.tolist(),
        "upper": certified.upper.tolist(),
        "contrasts": certified.contrasts.tolist(),
        "comparison": {
            "label": LABEL,
            "half_widths": [[number(value) for value in row] for row in certified.fixed.tolist()],
        },
    }


def number(value: float) -> float | None:
    """The number, None where it is unknown."""
    return float(value) if abs(value) < float("inf") else None


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{facts['experiment']}[/] under {facts['policy']}, era {facts['era']}")
    held = facts["certificate"]
    ends = dict(
        zip(held["candidates"], zip(held["lower"], held["upper"], strict=True), strict=True)
    )
    table = Table("model", "value", "± s.e.", "certified", "mean in the log", "EXP rewards")
    for row in facts["models"]:
        low, high = ends.pop(row["model"])
        table.add_row(
            row["model"],
            _cell(row["value"]),
            _cell(row["standard_error"]),
            f"{low:.3f} … {high:.3f}",
            _cell(row["log_mean"]),
            f"{row['exp_rewards']:,}",
        )
    for name, (low, high) in ends.items():
        value = facts["todays_routing"] if name == "(today's routing)" else None
        table.add_row(name, _cell(value), "", f"{low:.3f} … {high:.3f}", "", "")
    console.print(table)
    console.print(f"{facts['estimator']}: {facts['sentence']}")
    console.print(f"[bold]{facts['status']}[/]: {facts['status_sentence']}")
    console.print(
        f"Certified on {held['requests']:,} requests by the {held['sequence']} sequence "
        f"({held['reason']}), at all times together with probability {1 - held['delta']:.3g}."
    )
    if any(row["exposed"] < row["decided"] for row in facts["models"]):
        told = (
            f"{row['model']} {row['decided']:,} decided, {row['delivered']:,} delivered,"
            f" {row['exposed']:,} exposed"
            for row in facts["models"]
        )
        console.print(f"Draws that are closed: {'; '.join(told)}.")
    for segment in facts["segments"]:
        console.print(f"Segment {segment['segment']}: {segment['status']}")
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
    left = facts["budget_left"]
    console.print(
        f"{facts['decisions']:,} decisions, {facts['randomized']:,} randomized"
        + ("" if left is None else f", budget for {left:,} more")
        + f"; {facts['waiting']}"
    )


def _cell(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
