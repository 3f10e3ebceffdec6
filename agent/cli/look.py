"""`equipoise look`: what a usage log shows before there is any daemon."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from equipoise.agent.look.page import Look

LONG = 1 << 26
"""Bytes from which on progress is shown."""


def look(
    logs: Annotated[
        list[Path],
        typer.Argument(help="Usage logs: JSON lines, JSON, CSV or Parquet; .gz and .zst too."),
    ],
    shape: Annotated[
        str | None,
        typer.Option("--from", help="Whose log it is.", show_default="recognised, or guessed"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Path of the model, such as a.b.")] = None,
    reward: Annotated[str | None, typer.Option(help="Path of the reward.")] = None,
    rewards: Annotated[
        str | None, typer.Option(help="What words of the reward are worth: up=1,down=0.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Path of the time.")] = None,
    unit: Annotated[str | None, typer.Option(help="Path of the user.")] = None,
    cost: Annotated[str | None, typer.Option(help="Path of the cost in USD.")] = None,
    seconds: Annotated[str | None, typer.Option(help="Path of the time it took.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Path of the prompt.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="Path of a column that was known before the model was chosen; test these and no"
            " others.",
            show_default="all that look so",
        ),
    ] = None,
    effect: Annotated[
        float | None,
        typer.Option(
            help="The difference in reward to plan for.", show_default="5% of the reward's range"
        ),
    ] = None,
    traffic: Annotated[
        float | None, typer.Option(help="Requests an hour.", show_default="as in the log")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Share of requests to randomize.", show_default="0.1")
    ] = None,
    minimise: Annotated[bool, typer.Option(help="Smaller rewards are better.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Write a configuration that only observes.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a configuration that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Look at a usage log: what it shows, what it cannot show, what would settle it.

    Reads the log as it lies there and changes nothing. Columns are found by the shape of the log,
    or guessed by name and content; every guess is printed, and options overrule it ("none": there
    is no such column). Means and traffic are exact; tests rest on 100,000 rows drawn at random.

    Exit code 0: every row could be read; 1: some could not, and are counted; 2: a file or an option
    is wrong.

    Example: equipoise look usage.jsonl --out look.html --config equipoise.toml

    Example: equipoise look calls.csv.gz --model engine --reward thumb --rewards up=1,down=0
    """
    from equipoise.agent.errors import AgentError
    from equipoise.agent.maintenance.atomic_files import write_new

    if config is not None and config.exists() and not force:
        raise AgentError(f"{config} is there already: name another file, or add --force")
    given = {
        "model": model,
        "reward": reward,
        "at": at,
        "unit": unit,
        "cost": cost,
        "seconds": seconds,
        "prompt": prompt,
    }
    found, text = _looked(
        logs,
        shape,
        {role: path for role, path in given.items() if path is not None},
        column or [],
        _worth(rewards),
        config,
        {"effect": effect, "traffic": traffic, "rate": rate, "minimise": minimise},
    )
    from equipoise.agent.look.page import as_page

    page = None if out is None else as_page(found)
    if config is not None:
        if force:
            config.write_text(text, encoding="utf-8")
        else:
            write_new({config: (text, 0o644)})
    if out is not None and page is not None:
        out.write_text(page, encoding="utf-8")
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(found).decode())
    else:
        _print(found)
        for path in (config, out):
            if path is not None:
                typer.echo(f"Written: {path}")
    unread = set(found.findings.reasons) - {"no model", "answered from a cache"}
    if unread:
        raise typer.Exit(1)


def _worth(text: str | None) -> dict[str, float]:
    from equipoise.agent.errors import AgentError

    worth: dict[str, float] = {}
    for part in (text or "").split(",") if text else []:
        word, equals, number = part.rpartition("=")
        try:
            worth[word.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise AgentError(f"--rewards: {part[:40]!r} is not WORD=NUMBER")
    return worth


def _looked(
    logs: list[Path],
    shape: str | None,
    given: dict[str, str],
    columns: list[str],
    rewards: dict[str, float],
    config: Path | None,
    options: dict[str, float | None],
) -> tuple[Look, str]:
    """What was found, and the text of the configuration, "" where none is asked for."""
    from datetime import UTC, datetime

    from equipoise.agent.errors import AgentError
    from equipoise.agent.look.findings import Tally
    from equipoise.agent.look.page import Look
    from equipoise.agent.look.reading import Reader, inspected, survey
    from equipoise.agent.look.start import configuration, settled

    sources = [inspected(path) for path in logs]
    chosen, seen = survey(sources, shape, given, columns, rewards)
    reader = Reader(chosen, seen)
    tally = Tally(reader)
    with _progress(sum(source.size for source in sources)) as progress:
        for block in reader.blocks(sources, progress):
            tally.add(block)
    findings = tally.findings()
    if not findings.used:
        reasons = ", ".join(f"{number:,} {name}" for name, number in findings.reasons.items())
        raise AgentError(f"{logs[0]}: no row is a request to a model: {reasons or 'no rows'}")
    plan = settled(
        findings,
        effect=options["effect"],
        traffic=options["traffic"],
        rate=options["rate"],
        minimise=bool(options["minimise"]),
    )
    text = ""
    if config is not None:
        name = logs[0].name.split(".")[0]
        text = configuration(findings, chosen, seen, plan, name, logs[0].name)
    preset = chosen.preset
    found = Look(
        files=[str(path) for path in logs],
        date=datetime.now(UTC).date().isoformat(),
        shape="" if preset is None else preset.name,
        why="" if preset is None else preset.why,
        roles={role: (path, chosen.how[role]) for role, path in chosen.roles.items()},
        tested=[column.path for column in chosen.columns],
        left_out=dict(chosen.left_out),
        findings=findings,
        settled=plan,
        config=None if config is None else str(config),
    )
    return found, text


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int, int], None]]:
    """A line on standard error that moves, for long files on a terminal."""
    if size < LONG or not sys.stderr.isatty():
        yield lambda _done, _rows: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=size)

        def show(done: int, rows: int) -> None:
            bar.update(task, completed=done, description=f"{rows:,} rows")

        yield show


def _print(found: Look) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from equipoise.agent.look.page import SHOWN, parts, summary

    console = Console(soft_wrap=False)
    for line in summary(found):
        console.print(line, style="bold", markup=False, highlight=False)
    for part in parts(found):
        if part.folded:
            continue
        console.print(f"\n{part.title}", style="bold underline", markup=False)
        for line in part.notes:
            console.print(line, markup=False, highlight=False)
        if part.rows:
            table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for at, name in enumerate(part.head):
                table.add_column(name, justify="left" if at == 0 else "right", overflow="fold")
            for row in part.rows[:SHOWN]:
                table.add_row(*row)
            console.print(table, markup=False)
            if len(part.rows) > SHOWN:
                console.print(f"… and {len(part.rows) - SHOWN} more: --out FILE or --json")
        for line in part.below:
            console.print(line, markup=False, highlight=False)
