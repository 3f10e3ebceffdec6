"""`equipoise look`: what a usage log shows before there is any daemon."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from equipoise.agent.cli import say

if TYPE_CHECKING:
    from equipoise.agent.look.choosing import Chosen, Sighting, Sightings
    from equipoise.agent.look.findings import Findings
    from equipoise.agent.look.page import Look
    from equipoise.agent.look.settling import Settled

WIDE = 160
"""Columns of a table where there is no terminal."""
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
    """Look at a usage log: what it says, and what would settle it.

    Reads the log as it lies there and changes nothing. Columns are found by the shape of the log,
    or guessed by name and content; every guess is printed, and options overrule it ("none": there
    is no such column). Means and traffic are exact; tests rest on 100,000 rows drawn at random.

    Exit code 0: every row could be read; 1: some could not, and are counted; 2: a file or an option
    is wrong.

    Example: equipoise look usage.jsonl --out look.html --config equipoise.toml

    Example: equipoise look calls.csv.gz --reward thumb --rewards up=1,down=0
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
    if config is not None and text:
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
        for path in (config if text else None, out):
            if path is not None:
                typer.echo(f"Written: {path}")
    if config is not None and not text:
        raise AgentError(f"{config} is not written: it needs a log with two models or more")
    if found.findings.lost:
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
    from equipoise.agent.look.settling import settled

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
        unread=chosen.unread,
    )
    text = ""
    if config is not None and len(plan.compared) >= 2:
        name = logs[0].name.split(".")[0]
        text = configuration(findings, chosen, seen, plan, name, logs[0].name)
    preset = chosen.preset
    found = Look(
        files=[str(path) for path in logs],
        date=datetime.now(UTC).date().isoformat(),
        shape="" if preset is None else preset.holds,
        why="" if preset is None else preset.about,
        roles={role: (path, chosen.how[role]) for role, path in chosen.roles.items()},
        tested=[column.path for column in chosen.columns],
        left_out=dict(chosen.left_out),
        findings=findings,
        settled=plan,
        config=str(config) if text else None,
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
    from rich.text import Text

    from equipoise.agent.look.page import SHOWN, WORDS, parts, summary

    # What is piped has no width, other than the one that somebody set.
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if known else WIDE)
    say(summary(found))
    for part in parts(found):
        if part.folded:
            continue
        console.print(f"\n{part.title}", style="bold", markup=False)
        say(part.notes)
        if part.rows:
            shown = part.rows[:SHOWN]
            for columns in _stacked(part.head, shown, console.width):
                table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
                for at, width in columns:
                    side: Literal["left", "right"] = (
                        "left" if at == 0 or part.head[at] in WORDS else "right"
                    )
                    table.add_column(part.head[at], justify=side, overflow="fold", min_width=width)
                for row in shown:
                    table.add_row(*(Text(row[at]) for at, _ in columns))
                console.print(table)
            if len(part.rows) > SHOWN:
                typer.echo(f"… and {len(part.rows) - SHOWN} more: --out FILE or --json")
        say(part.below)


def _stacked(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> list[list[tuple[int, int]]]:
    """Numbers of columns with their least widths, in as many tables as fit below each other, each
    with the first column: a number is never cut or broken, and words are folded."""
    from equipoise.agent.look.page import WORDS

    tables: list[list[tuple[int, int]]] = []
    for at, name in enumerate(head):
        longest = max(len(row[at]) for row in rows)
        if at == 0 or name in WORDS:
            longest = min(longest, 20)
        column = (at, max(longest, *map(len, name.split())))
        # A space and a line around each column.
        used = sum(each + 2 for _, each in tables[-1]) if tables else 0
        if tables and used + column[1] + 2 > width - 2 and len(tables[-1]) > 1:
            tables.append([tables[0][0]])
        elif not tables:
            tables.append([])
        tables[-1].append(column)
    return tables


def configuration(
    findings: Findings, chosen: Chosen, seen: Sightings, settled: Settled, name: str, log: str
) -> str:
    """The TOML text to begin with: mode observe, the models of the log, and how to read it.

    Raises ConfigError where it would not be one, PlanError where the log has but one model.
    """
    import tomllib

    from equipoise.agent.config.file import file_from_dict
    from equipoise.agent.errors import PlanError
    from equipoise.agent.look.settling import SOFT, plain, rounded

    names = settled.compared
    if len(names) < 2:
        raise PlanError("--config", ", ".join(names) or "no model", "a log with two models or more")
    lines = [
        f"# Made from {log} by `equipoise look`. In mode observe the daemon logs and randomizes",
        "# nothing. Read every line; then: equipoise serve --config THIS FILE --check",
        "",
        f"name = {_quoted(SOFT.sub('-', name).strip('-._:/@+') or 'look')}",
    ]
    if settled.left_out:
        lines += ["", *left_out(settled.left_out)]
    for model in findings.models:
        if model.name not in names:
            continue
        lines += ["", "[[models]]", f"name = {_quoted(names[model.name])}"]
        if model.cost is not None and model.cost >= 0:
            lines.append(f"price = {plain(rounded(model.cost))}  # USD a request, as measured")
    lines += _reward(findings, settled.maximise)
    features, paths = _features(findings, chosen, seen)
    lines += features
    needed = None
    if settled.plan is not None and settled.plan.recommended is not None:
        needed = settled.plan.recommended.randomized.needed
    lines += [
        "",
        "[policy]",
        f"rate = {plain(settled.rate)}  # share of requests to randomize, once the mode is run",
        'estimator = "ipw"  # "hierarchical" adds replays, of which this log has none',
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
        f"requests_per_second = {plain(rounded(max((findings.traffic or 36e3) / 3600.0, 1e-3)))}",
    ]
    if findings.reward is not None:
        share = min(1.0, max(findings.reward.rated / findings.used, 1e-6))
        lines.append(f"rated = {plain(rounded(share))}")
    lines += _mapping(chosen, names, paths)
    text = "\n".join(lines) + "\n"
    file_from_dict(tomllib.loads(text), source="the configuration made from this log")
    return text


def left_out(names: list[str]) -> list[str]:
    """Comments on the models that are not in the configuration."""
    lines = [f"# Left out, for they have fewer requests: {len(names):,} models of the log. Ingest"]
    lines.append("# refuses their rows.")
    quoted = [_quoted(name[:60]) for name in names[:100]]
    lines += ["#   " + ", ".join(quoted[at : at + 5]) for at in range(0, len(quoted), 5)]
    return [*lines, *(["#   ..."] if len(names) > 100 else [])]


def _reward(findings: Findings, maximise: bool) -> list[str]:
    from equipoise.agent.answers.wording import percent

    reward = findings.reward
    lines = [
        "",
        "# Declare the range that rewards can have, not the one that was seen.",
        "[reward]",
    ]
    low, high = (reward.low, reward.high) if reward else (0.0, 1.0)
    lines += [f"low = {low!r}", f"high = {high!r}"]
    lines += [] if maximise else ["maximise = false"]
    lines.append("window = 86400  # seconds after which a reward counts as missing")
    if reward is not None and reward.rated < findings.used:
        share = percent(reward.rated / findings.used)
        lines.append(
            f'missing = "rated"  # {share} are rated: answers are about those (docs/missing.md)'
        )
    return lines


FIELDS = {"routed": "model", "reward": "reward", "at": "at", "unit_id": "unit"}
"""Fields of an observation, and what a look calls them."""


def _features(
    findings: Findings, chosen: Chosen, seen: Sightings
) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Tables of features, and the paths that fill them."""
    lines: list[str] = []
    paths: dict[str, dict[str, str]] = {"features": {}, "outputs": {}}

    def table(side: str, kind: str, path: str, *more: str, called: str = "") -> None:
        part = "context" if side == "features" else "outputs"
        name = re.sub(r"[^A-Za-z0-9_]+", "_", called or path.split(".")[-1]).strip("_")[:80]
        name = name if name[:1].isalpha() else f"x_{name}"
        taken = {*paths["features"], *paths["outputs"]}
        while name in taken:
            name += "_2"
        lines.extend(["", f"[[features.{part}]]", f'type = "{kind}"', f'name = "{name}"', *more])
        lines.append("missing = 0.0")
        paths[side][name] = path

    known = {} if chosen.preset is None else dict(chosen.preset.fields)
    prompt = known.get("prompt") or chosen.roles.get("prompt")
    for column in chosen.columns:
        each = seen.paths.get(column.path)
        if each is not None and column.kind == "category":
            words = _words(each)
            if len(words) >= 2:
                listed = ", ".join(_quoted(word) for word in words)
                table("features", "category", column.path, f"values = [{listed}]", "other = true")
        elif column.path == chosen.roles.get("prompt"):
            path = prompt or column.path
            if each is not None and each.kind != "text" and "[" not in path:
                path += "[role=user][-1].content"
            table("features", "text", path, 'statistics = ["words"]', called="prompt")
        elif each is not None and column.kind == "length" and each.kind == "text":
            table("features", "text", column.path, 'statistics = ["words"]')
        elif column.kind == "number" and column.path != chosen.roles.get("input_tokens"):
            table("features", "number", column.path, "winsorize = true")
    for role in ("seconds", "output_tokens"):
        where = known.get(role) or chosen.roles.get(role)
        if where is not None and not (role == "seconds" and chosen.milliseconds):
            table("outputs", "number", where, "low = 0.0", "log = true", "winsorize = true")
    return lines, paths


def _words(each: Sighting) -> list[str]:
    """Values of a category as the reader of logs spells them, the most frequent first."""
    from equipoise.agent.config.ingest import as_text

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
    lines = ["", "# equipoise ingest LOG --config THIS FILE --mapping log", "[[ingest]]"]
    lines.append('name = "log"')
    preset = chosen.preset
    if preset is not None:
        lines.append(f'preset = "{preset.name}"')
    own = []
    for ours, role in FIELDS.items():
        path = chosen.roles.get(role)
        given = preset is None or ours not in preset.fields
        if path is not None and (given or chosen.how[role] == "as you said"):
            own.append(f"{ours} = {_quoted(path)}")
    if own:
        lines += ["", "[ingest.fields]", *own]
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
