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
            str | None,
            typer.Option(help="The models to compare: how many, or their names.", show_default="2"),
        ] = None,
        traffic: Annotated[float | None, typer.Option(help="Requests per hour.")] = None,
        reward_rate: Annotated[
            float | None, typer.Option(help="Mean reward of the models today.")
        ] = None,
        effect: Annotated[
            float | None, typer.Option(help="Goal: the difference in reward to detect.")
        ] = None,
        power: Annotated[
            float | None, typer.Option(help="Probability of detecting it.", show_default="0.8")
        ] = None,
        half_width: Annotated[
            float | None,
            typer.Option(help="Goal: the leader's lead, to within plus or minus this."),
        ] = None,
        regret: Annotated[
            float | None, typer.Option(help="Goal: lose at most this, with probability 1 - delta.")
        ] = None,
        budget: Annotated[
            float | None, typer.Option(help="Budget: what do this many randomized requests buy?")
        ] = None,
        budget_money: Annotated[float | None, typer.Option(help="Budget in USD.")] = None,
        budget_harm: Annotated[
            float | None, typer.Option(help="Budget in reward lost on randomized requests.")
        ] = None,
        price: Annotated[
            list[str] | None,
            typer.Option(help="NAME=USD, the price of a request to a model; or one USD for all."),
        ] = None,
        mix: Annotated[
            str | None,
            typer.Option(help="NAME=SHARE,…: who serves today's traffic, to plan the extra bill."),
        ] = None,
        candidate: Annotated[
            str | None,
            typer.Option(
                help="The model that may be better.", show_default="least of --mix, or the first"
            ),
        ] = None,
        title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
        reward_sd: Annotated[
            float | None, typer.Option(help="Standard deviation of a reward; omit for 0/1 rewards.")
        ] = None,
        reward_low: Annotated[
            float | None, typer.Option(help="Lowest reward.", show_default="0")
        ] = None,
        reward_high: Annotated[
            float | None, typer.Option(help="Highest reward.", show_default="1")
        ] = None,
        minimise: Annotated[bool, typer.Option(help="Smaller rewards are better.")] = False,
        policies: Annotated[
            str | None,
            typer.Option(
                help="Comma-separated: uniform, neyman, top-two, track-and-stop.",
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
            typer.Option(help="Smallest probability of a model.", show_default="0.1 / models"),
        ] = None,
        delta: Annotated[
            float | None, typer.Option(help="Probability of a wrong answer.", show_default="0.05")
        ] = None,
        epsilon: Annotated[
            float | None, typer.Option(help="Smallest difference that matters.", show_default="0")
        ] = None,
        sequence: Annotated[
            str | None,
            typer.Option(
                help="Certified sequence: bounded, per-model or asymptotic.", show_default="bounded"
            ),
        ] = None,
        explained: Annotated[
            float | None,
            typer.Option(
                help="Share of the reward variance that replays explain.", show_default="0"
            ),
        ] = None,
        explainable: Annotated[
            float | None, typer.Option(help="The share that unlimited replays would explain.")
        ] = None,
        columns: Annotated[
            int | None, typer.Option(help="Number of context and output columns of the scorer.")
        ] = None,
        replay_price: Annotated[
            float | None,
            typer.Option(help="USD to replay a request on one model.", show_default="price"),
        ] = None,
        hour_price: Annotated[
            float | None, typer.Option(help="Cost of an hour of waiting, in USD.", show_default="0")
        ] = None,
        window: Annotated[
            float | None, typer.Option(help="Hours until a reward is final.", show_default="0")
        ] = None,
        horizon: Annotated[
            float | None, typer.Option(help="Hours until the decision is due.")
        ] = None,
        segments: Annotated[
            int | None, typer.Option(help="Number of segments with answers of their own.")
        ] = None,
        rated: Annotated[
            float | None,
            typer.Option(
                help="Share of randomized requests that get a reward; with --missing asked, of"
                " those whose users are asked.",
                show_default="1",
            ),
        ] = None,
        missing: Annotated[
            str | None,
            typer.Option(
                help="What it means that a reward never arrives: a number it counts as, worst-case,"
                " rated, asked or net.",
                show_default="worst-case",
            ),
        ] = None,
        ask: Annotated[
            float | None,
            typer.Option(help="Share of users who are asked for a rating, with --missing asked."),
        ] = None,
        seed: Annotated[int | None, typer.Option(help="Seed of the simulation.")] = None,
        store: Annotated[str | None, typer.Option(help="Start from what this store knows.")] = None,
        benchmark: Annotated[
            str | None, typer.Option(help="Plan for this benchmark, NAME or NAME:PATH.")
        ] = None,
        world: Annotated[
            list[str] | None, typer.Option(help="NAME=VALUE, an option of the benchmark's world.")
        ] = None,
        validation: Annotated[
            str | None,
            typer.Option(
                "--validate", help="Check plans by replays on these benchmarks: a,b:PATH,…"
            ),
        ] = None,
        count: Annotated[
            int, typer.Option(min=1, help="With --validate: replays per benchmark.")
        ] = 60,
        out: Annotated[
            Path | None, typer.Option(help="With --validate: the page to insert the table into.")
        ] = None,
        csv: Annotated[Path | None, typer.Option(help="Write every row to this CSV file.")] = None,
        html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page.")] = None,
        every: Annotated[
            bool, typer.Option("--all", help="Print every table, not only what comes first.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    ) -> None:
        """Plan a budget: what a goal costs, or what a budget buys.

        The cost is in randomized requests, time, money and harm (reward lost to randomizing).

        Example: equipoise plan --traffic 1000 --reward-rate 0.5 --effect 0.05

        Example: equipoise plan --models 3 --reward-rate 0.5 --budget 2000

        Example: equipoise plan --store experiment.db --effect 0.03
        """
        if validation is not None:
            validate(validation.split(","), count, out, as_json)
            return
        fields = _without_none(
            **_of_models(models, price, mix),
            candidate=candidate,
            title=title,
            traffic=traffic,
            reward_rate=reward_rate,
            effect=effect,
            power=power,
            half_width=half_width,
            regret=regret,
            budget_requests=budget,
            budget_money=budget_money,
            budget_harm=budget_harm,
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
            ask=ask,
            seed=seed,
        )
        shown = every or as_json or csv is not None or html is not None
        answer = _answer(fields, store, benchmark, world or [], of_benchmark, shown)
        _deliver(answer, csv, html, as_json, every)

    return plan


def _of_models(models: str | None, price: list[str] | None, mix: str | None) -> dict[str, Any]:
    """What is said of models by their names, as fields of a request: lists in one order, that of
    --models or, where that is a number, of the prices or of the mix. Raises PlanError."""
    from equipoise.agent.errors import PlanError

    counted = None
    names = [name.strip() for name in models.split(",")] if models else []
    if len(names) == 1:
        try:
            counted, names = int(names[0]), []
        except ValueError:
            limit = "how many, or their names: NAME,NAME,…"
            raise PlanError("models", models, limit) from None
    result: dict[str, Any] = {"models": counted}
    given = [part for text in price or [] for part in text.split(",")]
    if len(given) == 1 and "=" not in given[0]:
        result["price"], given = _number("price", given[0], "USD a request, or NAME=USD"), []
    prices = _by_name("price", given, "NAME=USD")
    shares = _by_name("mix", mix.split(",") if mix else [], "NAME=SHARE")
    names = names or list(prices or shares)
    for field, values in (("price", prices), ("mix", shares)):
        if field == "mix" and values:
            # Who is not named serves nobody today.
            values = {**dict.fromkeys(names, 0.0), **values}
        unknown = next((name for name in values if name not in names), None)
        if unknown is not None:
            raise PlanError(field, f"of {unknown}", f"one of {', '.join(names)}")
        if values and len(values) < len(names):
            lacking = next(name for name in names if name not in values)
            raise PlanError(field, f"missing for {lacking}", "NAME=USD for every model")
        if values:
            result["prices" if field == "price" else field] = [values[name] for name in names]
    result["names"] = names or None
    return result


def _by_name(field: str, parts: list[str], form: str) -> dict[str, float]:
    from equipoise.agent.errors import PlanError

    values: dict[str, float] = {}
    for part in parts:
        name, equals, text = part.rpartition("=")
        if not (equals and name.strip()):
            raise PlanError(field, repr(part)[:80], f"{form}, separated by commas")
        if name.strip() in values:
            raise PlanError(field, f"{name.strip()} twice", "every model once")
        values[name.strip()] = _number(field, text, form)
    return values


def _number(field: str, text: str, form: str) -> float:
    from equipoise.agent.errors import PlanError

    try:
        return float(text)
    except ValueError:
        raise PlanError(field, repr(text)[:80], form) from None


def _missing(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _answer(
    fields: dict[str, Any],
    store: str | None,
    benchmark: str | None,
    world: list[str],
    of_benchmark: OfBenchmark,
    every: bool,
) -> Plan:
    from equipoise.agent.errors import PlanError
    from equipoise.agent.planning.plan import make_plan
    from equipoise.agent.planning.problem import Problem
    from equipoise.agent.planning.request import read_request

    if store is not None and benchmark is not None:
        raise PlanError("benchmark", benchmark, "none beside a store")
    if store is not None:
        from equipoise.agent.agent import Agent
        from equipoise.agent.cli.maintenance import reading
        from equipoise.agent.planning.stored import of_experiment

        with reading(store) as (opened, config):
            answers = Agent(config, opened, None).answers
            return make_plan(*of_experiment(answers, fields), every=every)
    if benchmark is not None:
        return make_plan(of_benchmark(benchmark, world, fields), every=every)
    return make_plan(Problem.of_numbers(read_request(fields)), every=every)


def _deliver(answer: Plan, csv: Path | None, html: Path | None, as_json: bool, every: bool) -> None:
    from equipoise.agent.planning.output.page import as_page
    from equipoise.agent.planning.output.terminal import as_csv, print_plan

    # Everything is made before anything is written.
    texts = [(csv, as_csv), (html, as_page)]
    files = [(path, make(answer)) for path, make in texts if path is not None]
    for path, text in files:
        path.write_text(text, encoding="utf-8")
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(answer).decode())
        return
    print_plan(answer, every=every)
    for path, _ in files:
        typer.echo(f"Written: {path}")
