"""`equipoise status`: what is known and decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from equipoise.agent.agent import Agent


def status(
    store: Annotated[Path, typer.Argument(help="The store (a SQLite file).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say what a store knows: values of every model, what to serve, what is certified.

    Example: equipoise status experiment.db
    """
    from equipoise.agent.agent import Agent
    from equipoise.agent.cli.stores import reading

    with reading(store) as (opened, config):
        facts = describe(Agent(config, opened, None))
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(facts).decode())
        return
    _print(facts)


def describe(agent: Agent) -> dict[str, Any]:
    """Everything `status` says, JSON-able: numbers in reward units, null where unknown."""
    import numpy as np

    from equipoise.agent.estimators.naive_log import naive_log
    from equipoise.agent.snapshots import sample_moments

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    view = agent.view()
    family = agent.config.policy.estimator
    estimate = agent.estimates([family])[family]
    answer = agent.recommendation()
    logged = naive_log(view.moments)
    counts, _, _ = sample_moments(view.moments.arms)
    winner = agent.certified_winner()
    budget = agent.config.budget.requests
    pending = agent.fold.pending
    return {
        "experiment": agent.config.name,
        "policy": f"{agent.config.policy.gate}+{agent.config.policy.assignment}",
        "rule_id": agent.rule.rule_id,
        "era": agent.rule.era,
        "log_rows": agent.fold.next_seq,
        "decisions": pending.next,
        "randomized": agent.fold.randomized,
        "budget_left": None if budget is None else budget - agent.fold.randomized,
        "spending": [
            {
                "resource": each.resource,
                "limit": each.limit,
                **{name: number(getattr(each, name)) for name in ("spent", "expected", "planned")},
            }
            for each in agent.spending()
        ],
        "waiting_for_outcomes": pending.next - view.watermark,
        "status": "exploring" if winner is None else "decided",
        "certified": winner,
        "recommendation": answer.action,
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
            }
            for index, name in enumerate(agent.models)
        ],
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{facts['experiment']}[/] under {facts['policy']}, era {facts['era']}")
    table = Table("model", "value", "± s.e.", "mean in the log", "EXP rewards")
    for row in facts["models"]:
        cells = [row["value"], row["standard_error"], row["log_mean"]]
        table.add_row(
            row["model"],
            *("unknown" if cell is None else f"{cell:.4f}" for cell in cells),
            f"{row['exp_rewards']:,}",
        )
    console.print(table)
    console.print(f"{facts['estimator']}: {facts['sentence']}")
    if facts["certified"] is None:
        console.print("Certified: nothing yet (exploring).")
    else:
        console.print(f"Certified: {facts['certified']} is best, whenever one looks.")
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
        + f"; {facts['waiting_for_outcomes']:,} wait for their outcome."
    )
