"""`equipoise plan`: what to spend in order to know, and what is known for it.

`plan_command` makes the command, so that the layer above can bring in its benchmarks; nothing here
knows of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from equipoise.agent.planning.plan import Plan
    from equipoise.agent.planning.problem import Problem

OfBenchmark = Callable[[str, list[str], Mapping[str, Any]], "Problem"]
Validate = Callable[[list[str], int, Path | None, bool], None]


def plan_command(of_benchmark: OfBenchmark, validate: Validate) -> Callable[..., None]:
    """The command, given how to plan from a benchmark and how to validate plans on some."""

    def plan(
        models: Annotated[
            int | None, typer.Option(help="How many models to compare.", show_default="2")
        ] = None,
        traffic: Annotated[float | None, typer.Option(help="Requests an hour.")] = None,
        reward_rate: Annotated[
            float | None, typer.Option(help="What models are worth today: mean reward.")
        ] = None,
        effect: Annotated[
            float | None, typer.Option(help="Goal: difference in reward worth finding.")
        ] = None,
        power: Annotated[
            float | None, typer.Option(help="Chance to find it.", show_default="0.8")
        ] = None,
        half_width: Annotated[
            float | None, typer.Option(help="Goal: know the leader's lead to plus or minus this.")
        ] = None,
        regret: Annotated[
            float | None, typer.Option(help="Goal: lose at most this with probability 1 - delta.")
        ] = None,
        budget: Annotated[
            float | None, typer.Option(help="What do so many randomized requests buy?")
        ] = None,
        budget_money: Annotated[float | None, typer.Option(help="The same, in USD.")] = None,
        budget_harm: Annotated[
            float | None, typer.Option(help="The same, in reward lost on randomized requests.")
        ] = None,
        price: Annotated[float | None, typer.Option(help="USD a request.")] = None,
        reward_sd: Annotated[
            float | None, typer.Option(help="Of one reward; leave out where it is 0 or 1.")
        ] = None,
        reward_low: Annotated[float | None, typer.Option(show_default="0")] = None,
        reward_high: Annotated[float | None, typer.Option(show_default="1")] = None,
        minimise: Annotated[bool, typer.Option(help="Smaller rewards are better.")] = False,
        policies: Annotated[
            str | None,
            typer.Option(
                help="Some of uniform,neyman,top-two,track-and-stop.",
                show_default="uniform,top-two,track-and-stop",
            ),
        ] = None,
        rate: Annotated[
            float | None,
            typer.Option(
                "--rate", "--exp-rate", help="Share of requests randomized.", show_default="0.1"
            ),
        ] = None,
        floor: Annotated[
            float | None,
            typer.Option(help="Least probability of a model.", show_default="0.1 / models"),
        ] = None,
        delta: Annotated[
            float | None, typer.Option(help="Chance of a wrong answer.", show_default="0.05")
        ] = None,
        epsilon: Annotated[
            float | None, typer.Option(help="Smallest difference that matters.", show_default="0")
        ] = None,
        sequence: Annotated[
            str | None,
            typer.Option(help="bounded, per-model or asymptotic.", show_default="bounded"),
        ] = None,
        explained: Annotated[
            float | None,
            typer.Option(help="Share of reward variance that replays predict.", show_default="0"),
        ] = None,
        explainable: Annotated[
            float | None, typer.Option(help="The share that unlimited replays would predict.")
        ] = None,
        columns: Annotated[
            int | None, typer.Option(help="Of contexts and outputs that the scorer reads.")
        ] = None,
        replay_price: Annotated[
            float | None,
            typer.Option(help="USD to replay a request on one model.", show_default="price"),
        ] = None,
        hour_price: Annotated[
            float | None, typer.Option(help="USD that an hour of waiting costs.", show_default="0")
        ] = None,
        window: Annotated[
            float | None, typer.Option(help="Hours until a reward is final.", show_default="0")
        ] = None,
        horizon: Annotated[float | None, typer.Option(help="Hours until you must know.")] = None,
        segments: Annotated[
            int | None, typer.Option(help="Parts of the traffic with answers of their own.")
        ] = None,
        rated: Annotated[
            float | None,
            typer.Option(help="Share of randomized requests whose reward comes.", show_default="1"),
        ] = None,
        missing: Annotated[
            str | None,
            typer.Option(
                help="What a reward that never comes counts as: a number or worst-case.",
                show_default="worst-case",
            ),
        ] = None,
        seed: Annotated[int | None, typer.Option(help="Of the simulation.")] = None,
        store: Annotated[
            Path | None, typer.Option(help="Go on from what this store knows.")
        ] = None,
        benchmark: Annotated[
            str | None, typer.Option(help="Plan for this benchmark, NAME or NAME:PATH.")
        ] = None,
        world: Annotated[
            list[str] | None, typer.Option(help="NAME=VALUE, an option of the benchmark's world.")
        ] = None,
        validation: Annotated[
            str | None,
            typer.Option(
                "--validate", help="Replay planned experiments on these benchmarks, a,b:PATH,…"
            ),
        ] = None,
        count: Annotated[int, typer.Option(min=1, help="Of them on each benchmark.")] = 60,
        out: Annotated[
            Path | None, typer.Option(help="With --validate: page to put the table into.")
        ] = None,
        csv: Annotated[Path | None, typer.Option(help="Write every row to this CSV file.")] = None,
        html: Annotated[Path | None, typer.Option(help="Write a page, in one file.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    ) -> None:
        """Plan a budget: requests, time, money and harm for a goal, or what a budget buys.

        Example: equipoise plan --models 3 --traffic 1000 --reward-rate 0.5 --effect 0.05

        Example: equipoise plan --models 3 --reward-rate 0.5 --budget 2000

        Example: equipoise plan --store experiment.db --effect 0.03 --html plan.html
        """
        if validation is not None:
            validate(validation.split(","), count, out, as_json)
            return
        given = _given(
            models=models,
            traffic=traffic,
            reward_rate=reward_rate,
            effect=effect,
            power=power,
            half_width=half_width,
            regret=regret,
            budget_requests=budget,
            budget_money=budget_money,
            budget_harm=budget_harm,
            price=price,
            reward_sd=reward_sd,
            reward_low=reward_low,
            reward_high=reward_high,
            maximise=False if minimise else None,
            policies=None if policies is None else policies.split(","),
            rate=rate,
            floor=floor,
            delta=delta,
            epsilon=epsilon,
            sequence=sequence,
            explained=explained,
            explainable=explainable,
            columns=columns,
            replay_price=replay_price,
            hour_price=hour_price,
            window=window,
            horizon=horizon,
            segments=segments,
            rated=rated,
            missing=_missing(missing),
            seed=seed,
        )
        answer = _answer(given, store, benchmark, world or [], of_benchmark)
        _deliver(answer, csv, html, as_json)

    return plan


def _missing(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _answer(
    given: dict[str, Any],
    store: Path | None,
    benchmark: str | None,
    world: list[str],
    of_benchmark: OfBenchmark,
) -> Plan:
    from equipoise.agent.errors import PlanError
    from equipoise.agent.planning.plan import make_plan
    from equipoise.agent.planning.problem import Problem
    from equipoise.agent.planning.request import read_request

    if store is not None and benchmark is not None:
        raise PlanError("benchmark", benchmark, "none beside a store")
    if store is not None:
        from equipoise.agent.agent import Agent
        from equipoise.agent.cli.stores import reading
        from equipoise.agent.planning.stored import of_experiment

        with reading(store) as (opened, config):
            return make_plan(*of_experiment(Agent(config, opened, None).answers, given))
    if benchmark is not None:
        return make_plan(of_benchmark(benchmark, world, given))
    return make_plan(Problem.of_numbers(read_request(given)))


def _deliver(answer: Plan, csv: Path | None, html: Path | None, as_json: bool) -> None:
    from equipoise.agent.planning.output.page import as_page
    from equipoise.agent.planning.output.terminal import as_csv, print_plan

    # Everything is made before anything is written.
    texts = [(csv, as_csv), (html, as_page)]
    made = [(path, make(answer)) for path, make in texts if path is not None]
    for path, text in made:
        path.write_text(text, encoding="utf-8")
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(answer).decode())
        return
    print_plan(answer)
    for path, _ in made:
        typer.echo(f"Written: {path}")
