"""`equipoise audit`, `backup`, `restore`, `export`, `repair`, `end`: commands that look after a
store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.agent.cli import say

if TYPE_CHECKING:
    from equipoise.agent.config import ExperimentConfig
    from equipoise.agent.maintenance.audit import Audit
    from equipoise.store.sql.store import SqlStore

STORE_HELP = "The store: a SQLite file, or postgresql://host/database?schema=name."


@contextmanager
def reading(where: str | Path) -> Iterator[tuple[SqlStore, ExperimentConfig]]:
    """The store, read-only, and the configuration frozen in it.

    What a killed daemon left in the tail is taken in first: nothing acknowledged is missing.

    Raises AgentError where it is a store that no experiment was opened on.
    """
    from equipoise.agent.config import ExperimentConfig
    from equipoise.agent.errors import AgentError
    from equipoise.agent.lifecycle import stored_config
    from equipoise.store.address import is_url, shown
    from equipoise.store.opening import open_store

    if not is_url(where):
        _take_in_tail(Path(where))
    with open_store(where, read_only=True) as store:
        text = stored_config.load(store)
        if text is None:
            raise AgentError(f"{shown(where)} holds no experiment yet")
        yield store, ExperimentConfig.from_json(text)


def _take_in_tail(path: Path) -> None:
    from equipoise.store.errors import ReadOnlyStoreError, StoreInUseError
    from equipoise.store.format.frames import tail_files
    from equipoise.store.format.mark import read_mark
    from equipoise.store.sqlite import SqliteStore

    # A store that its writer left in order is only read; but a copy from an earlier day, put in its
    # place, is not as it was left.
    mark = read_mark(path)
    if path.is_file() and (tail_files(path) or mark is not None):
        # A daemon that is running takes its own tail in, a few milliseconds from now.
        with suppress(StoreInUseError, ReadOnlyStoreError):
            SqliteStore(path).close()


def audit(
    store: Annotated[str, typer.Argument(help=STORE_HELP)],
    anchor: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE|BACKUP", help="Compare with these anchors; repeatable."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="The key file.", show_default="beside the store")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Check a store and recompute every decision in it.

    Every row is compared with the hash chain. Every probability is recomputed from its rule, every
    draw from its uniform, and with the key file beside the store the uniforms too. It checks why
    each decision was served as routed, and that each part of an outcome is logged once. What
    cannot be proven is listed.

    Exit code 0: clean; 1: faults were found; 2: the store cannot be read.

    Example: equipoise audit experiment.db --anchor anchors.jsonl
    """
    from dataclasses import asdict

    from equipoise.agent.maintenance.audit import audit as run
    from equipoise.agent.maintenance.audit_chain import read_anchors
    from equipoise.agent.maintenance.key_file import read_key
    from equipoise.store.words import plural

    anchors = [each for path in anchor or () for each in read_anchors(path)]
    with reading(store) as (opened, config), _progress("auditing") as say_progress:
        total = opened.next_seq
        result = run(
            opened,
            config,
            read_key(store, key),
            lambda doing, rows: say_progress(f"{doing}: {rows:,} of {plural(total, 'row')}"),
            anchors,
        )
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode({**asdict(result), "clean": result.clean}).decode())
    else:
        say(_sentences(result))
    if not result.clean:
        raise typer.Exit(1)


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[str], None]]:
    """A line of standard error that says what is being done, on a terminal; else nothing."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    from rich.console import Console

    with Console(stderr=True).status(doing) as spinner:
        yield spinner.update


def _sentences(result: Audit) -> list[str]:
    from equipoise.store.words import plural, verb

    sentences = []
    if result.begins:
        sentences.append(
            f"the log begins at row {result.begins:,}; SHA-256 of what came before: {result.digest}"
        )
    sentences += [f"lost: {sentence}" for sentence in result.losses]
    if result.unchecked:
        followers = plural(result.unchecked, "decision")
        follow = verb(result.unchecked, "follows", "follow")
        sentences.append(f"{followers} {follow} one that was removed: not checked")
    sentences.append(
        f"{plural(result.rows, 'log row')}, {plural(result.decisions, 'decision')} under"
        f" {plural(result.rules, 'rule')} ({result.randomized:,} randomized"
        f"{_not_randomizable(result)}), {plural(result.outcomes, 'outcome part')}"
    )
    if result.chained_from is not None:
        anchors = plural(result.anchors, "anchor")
        compared = f", compared with {anchors}" if result.anchors else ""
        rows, first = plural(result.chained_rows, "row"), result.chained_from
        sentences.append(f"hash chain: {rows} from row {first:,} on{compared}")
    drawn = "" if result.uniforms_redrawn else " (no key beside the store: uniforms not redrawn)"
    if result.clean:
        elsewhere = sum(result.drawn.values())
        of = f" of the {plural(result.decisions - elsewhere, 'decision')} made here"
        sentences.append(
            "clean: rows are as they were written, as far as they are chained; every probability"
            f" and every draw{of if elsewhere else ''} recomputes{drawn}"
        )
    sentences += [f"fault: {fault}" for fault in result.faults]
    if not result.clean:
        sentences.append(f"{plural(result.fault_count, 'fault')}{drawn}")
    return [*sentences, *(f"not proven: {sentence}" for sentence in result.unproven)]


def _not_randomizable(result: Audit) -> str:
    """How many decisions a stop kept from being randomized, and which, where the log says."""
    from equipoise.agent.monitors.lost_rows import CLOSURE_WORDS
    from equipoise.store.batches import LEFT_OUT

    left_out = ", ".join(
        f"{result.left_out[closure.name.lower()]:,} {CLOSURE_WORDS[closure]}"
        for closure in LEFT_OUT
        if closure.name.lower() in result.left_out
    )
    left_out = f"; in no sum of draws: {left_out}" if left_out else ""
    if not result.capped:
        return left_out
    reasons = [
        f"{count:,} {words}"
        for closure, words in CLOSURE_WORDS.items()
        if (count := result.closed_by.get(closure.name.lower(), 0))
    ]
    unsaid = result.capped - sum(result.closed_by.values())
    if unsaid:
        reasons.append(f"{unsaid:,} for a reason that an older log does not say")
    return f", {result.capped:,} not open to randomizing: {', '.join(reasons)}{left_out}"


def backup(
    store: Annotated[str, typer.Argument(help="The store (a SQLite file).")],
    out: Annotated[Path, typer.Option(help="Folder to create; it must not exist.")],
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace the folder of an earlier backup, once this is whole."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Copy a store and its key, even while it is in use.

    The copy is a complete store as of one moment: `audit` and `status` work on it. Its files have
    mode 0600. Of a store in PostgreSQL pg_dump makes one, or `migrate` a SQLite file.

    Example: equipoise backup equipoise.db --out backups/monday
    """
    from equipoise.agent.errors import AgentError
    from equipoise.agent.maintenance.backups import back_up
    from equipoise.store.address import is_url, shown

    if is_url(store):
        raise AgentError(
            f"{shown(store)} is a PostgreSQL database: back it up with pg_dump, or with"
            " equipoise migrate URL FILE, and keep its key"
        )
    _print(back_up(Path(store), out, force=force), out, as_json)


def restore(
    folder: Annotated[Path, typer.Argument(help="A folder written by `backup`.")],
    store: Annotated[Path, typer.Option(help="Where to put the store; it must not exist.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Put a backup back in place.

    The store and its key are checked first. Existing files are never replaced.

    Example: equipoise restore backups/monday --store equipoise.db
    """
    from equipoise.agent.maintenance.backups import put_back

    _print(put_back(folder, store), store, as_json)


def _print(facts: dict[str, object], where: Path, as_json: bool) -> None:
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode({"path": str(where), **facts}).decode())
        return
    from equipoise.store.words import plural

    key = "with its key" if facts["key"] else "without a key (there is none beside the store)"
    rows = facts["log_rows"]
    assert isinstance(rows, int)
    typer.echo(f"{where}: {plural(rows, 'log row')}, {key}")
    losses = facts.get("losses")
    for sentence in losses if isinstance(losses, list) else ():
        typer.echo(f"lost: {sentence}")


def migrate(
    source: Annotated[str, typer.Argument(help=f"{STORE_HELP} No daemon may run.")],
    target: Annotated[str, typer.Argument(help="The new store; nothing may be there.")],
    key: Annotated[
        Path | None, typer.Option(help="The key file.", show_default="beside the store")
    ] = None,
    to_key: Annotated[
        Path | None,
        typer.Option(help="Where to put the key.", show_default="beside the new store"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Move an experiment into another database, SQLite or PostgreSQL.

    Every row, rule, era, setting, alert and checkpoint is copied, with the hash chain, the key, and
    what deciders agreed on. The digest of every row is compared before the new store appears: there
    is a whole one or none. The old one stays as it is. Serve one of the two from then on: both
    together would decide different requests with the same numbers.

    Example: equipoise migrate chat.db "postgresql://db/chat?schema=chat"
    """
    from equipoise.agent.maintenance.migrate import migrate as moved
    from equipoise.store.address import shown
    from equipoise.store.words import plural

    with _progress("copying") as say_progress:
        facts = moved(
            *(source, target, key, to_key),
            progress=lambda doing, rows: say_progress(f"{doing}: {plural(rows, 'row')}"),
        )
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode({"path": shown(target), **facts}).decode())
        return
    rows, decisions = facts["log_rows"], facts["decisions"]
    assert isinstance(rows, int)
    assert isinstance(decisions, int)
    typer.echo(
        f"{shown(target)}: {plural(rows, 'log row')}, {plural(decisions, 'decision')}; hash chain"
        f" {facts['digest']}, as in {shown(source)}"
    )
    key_words = "there was none beside the store" if facts["key"] is None else facts["key"]
    typer.echo(f"key: {key_words}")
    typer.echo(f"{shown(source)} stays as it is: do not serve it any more")


def export(
    store: Annotated[str, typer.Argument(help=STORE_HELP)],
    out: Annotated[Path, typer.Option(help="Folder to create; it must not exist.")],
    format_: Annotated[
        str, typer.Option("--format", help="What is written.", metavar="parquet|csv|dsjson|obp")
    ] = "parquet",
    era: Annotated[
        int | None,
        typer.Option(min=0, help="For dsjson and obp: the era; the one in force if left out."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the folder of an earlier export.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write a store as tidy tables or as bandit feedback.

    parquet, csv: one file each for decisions, outcomes, observations, simulations, expiries, rules,
    eras, configurations, controls, alerts and losses, and one that describes every column. Models
    are named; features are columns x_* and y_*, probabilities columns p_*. experiment.json holds
    what is certified now.

    dsjson, obp: the rows that certified sums count, with the probability of every action, for
    Vowpal Wabbit (JSON lines) and Open Bandit Pipeline (Parquet). experiment.json says which rows
    are left out and why, and the IPS and SNIPS estimates that they must agree with.

    Example: equipoise export experiment.db --out tables --format csv

    Example: equipoise export experiment.db --out vw --format dsjson
    """
    from equipoise.agent.maintenance.atomic_files import check_target
    from equipoise.store.address import files_of
    from equipoise.store.words import plural

    formats = ("parquet", "csv", "dsjson", "obp")
    if format_ not in formats:
        words = f"{format_!r} is not one of {', '.join(formats)}"
        raise typer.BadParameter(words, param_hint="--format")
    of_rows = format_ in ("dsjson", "obp")
    if era is not None and not of_rows:
        raise typer.BadParameter(f"{format_} holds every era", param_hint="--era")
    # Before the store is opened: a long log is not read for nothing.
    check_target(out, "experiment.json" if force else None, source=files_of(store))
    with reading(store) as (opened, config), _progress("reading the log") as say_progress:
        total = opened.next_seq
        if of_rows:
            from equipoise.agent.maintenance.bandit_files import write_feedback

            facts = write_feedback(
                opened,
                config,
                out,
                format_,
                era=era,
                force=force,
                progress=lambda rows, left: say_progress(
                    f"writing {plural(rows, 'row')}, {left:,} left out; {total:,} rows in the log"
                ),
            )
        else:
            from equipoise.agent.maintenance.export import write_tables

            written = write_tables(
                opened,
                config,
                out,
                format_,
                force=force,
                progress=lambda table, rows: say_progress(
                    f"writing {table}: {plural(rows, 'row')}, of {total:,} in the log"
                ),
            )
            facts = {"rows": written}
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode({"out": str(out), **facts}).decode())
    elif of_rows:
        say(_feedback_sentences(out, facts))
    else:
        for name, rows in facts["rows"].items():
            typer.echo(f"{out / f'{name}.{format_}'}: {plural(rows, 'row')}")
        typer.echo(f"{out / 'experiment.json'}: what is certified, and the settings")


def _feedback_sentences(out: Path, facts: dict[str, Any]) -> list[str]:
    from equipoise.store.words import plural

    sentences = [f"{out / name}: {plural(rows, 'row')}" for name, rows in facts["files"].items()]
    sentences += [
        f"left out: {plural(rows, 'decision')} {reason}"
        for reason, rows in facts["left_out"].items()
    ]
    if facts["usage_rows"]:
        rows = plural(facts["usage_rows"], "row")
        sentences.append(f"left out: {rows} of the usage log, whose probabilities nobody knows")
    said = out / "experiment.json"
    return [*sentences, f"{said}: what was left out, and the IPS and SNIPS estimates"]


def repair(
    store: Annotated[str, typer.Argument(help=f"{STORE_HELP} No daemon may run.")],
    check: Annotated[
        bool, typer.Option(help="Only report what is missing; exit code 1 if anything is.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Recover what is left of a damaged store, and accept the loss.

    For a store that refuses to open. Every intact frame of its tail is recovered, even beyond
    damaged ones. What is lost is printed and recorded in the store, where status, audit and readyz
    show it; the numbers of lost decisions are never used again. Damaged and foreign files are kept
    under names that end in .damaged. A store that lacks nothing is left as it is. This cannot be
    undone: copy the folder first, and look for a backup.

    Example: equipoise repair equipoise.db --check
    """
    from equipoise.store.errors import LostRowsError, MissingStoreError
    from equipoise.store.opening import exists, named, open_store
    from equipoise.store.words import plural

    if not exists(store):
        raise MissingStoreError(f"store {named(store)} does not exist")
    refusal = ""
    try:
        if check:
            open_store(store).close()
    except LostRowsError as error:
        refusal = str(error)
    losses: list[str] = []
    recovered, put_aside = 0, list[str]()
    if not check:
        with open_store(store, accept_loss=True) as opened:
            leftovers = opened.leftovers
            losses = [gap.sentence for gap in leftovers.gaps]
            recovered, put_aside = leftovers.recovered, list(leftovers.put_aside)
    if as_json:
        import msgspec

        facts = {
            "losses": losses,
            "rows_taken_in": recovered,
            "put_aside": put_aside,
            "refusal": refusal,
        }
        typer.echo(msgspec.json.encode(facts).decode())
    elif check:
        typer.echo(refusal or f"{named(store)}: nothing is missing")
    else:
        typer.echo(f"{named(store)}: {plural(recovered, 'row')} taken in from the tail")
        for sentence in losses or ["nothing"]:
            typer.echo(f"lost: {sentence}")
        if put_aside:
            typer.echo(f"put aside: {', '.join(put_aside)}")
    if refusal:
        raise typer.Exit(1)


def end(
    store: Annotated[str | None, typer.Argument(help=f"{STORE_HELP} No daemon may run.")] = None,
    model: Annotated[str | None, typer.Option(help="Serve this model from now on.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave today's routing as it is.")] = False,
    reason: Annotated[str, typer.Option(help="Kept in the store, for people.")] = "",
    key: Annotated[
        Path | None, typer.Option(help="The key file.", show_default="beside the store")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Ask this daemon instead, with the token in EQUIPOISE_TOKEN (admin)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """End an experiment for good.

    Nothing is randomized any more, through every restart, and who is to be served from now on is
    kept. Without --model or --keep that is the action of the recommendation. Requests are still
    decided and logged, as routed. `POST /v1/resume` begins a new era.

    Example: equipoise end experiment.db --model large --reason "large won"

    Example: equipoise end --url http://127.0.0.1:8080 --keep
    """
    import msgspec

    from equipoise.agent.errors import AgentError
    from equipoise.agent.experiment import Experiment
    from equipoise.agent.lifecycle.eras import Ended
    from equipoise.store.errors import StoreInUseError

    if model is not None and keep:
        raise typer.BadParameter("--keep leaves no model to serve", param_hint="--model")
    if (store is None) is (url is None):
        raise typer.BadParameter("give a store, or else --url", param_hint="STORE")
    if url is not None:
        body = {"model": model, "keep": keep, "reason": reason}
        ended = msgspec.convert(_asked(url, "/v1/end", body)["ended"], Ended)
    else:
        try:
            with Experiment.open(store, key=key) as experiment:
                ended = experiment.end(model, keep=keep, reason=reason)
        except StoreInUseError as error:
            why = "end it with --url http://HOST:PORT if that is a daemon"
            raise AgentError(f"{error}: {why}") from None
    if as_json:
        typer.echo(msgspec.json.encode(ended).decode())
        return
    if ended.model is None:
        typer.echo(f"ended in era {ended.era}: keep today's routing")
    else:
        sure = "certified" if ended.certified else "not certified"
        typer.echo(f"ended in era {ended.era}: serve {ended.model}, which is {sure}")


def _asked(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What a daemon answers. Raises AgentError where it does not, or refuses."""
    import os
    from http.client import HTTPException

    import msgspec

    from equipoise.agent.client import Address
    from equipoise.agent.errors import AgentError

    try:
        address = Address.of(url)
    except ValueError as error:
        raise AgentError(str(error)) from None
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("EQUIPOISE_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    try:
        with closing(address.connection(60.0)) as connection:
            connection.request("POST", address.path + path, msgspec.json.encode(body), headers)
            response = connection.getresponse()
            answer = msgspec.json.decode(response.read(), type=dict[str, Any])
    except (OSError, HTTPException, msgspec.MsgspecError) as error:
        raise AgentError(f"the daemon does not answer: {error or type(error).__name__}") from None
    if response.status != 200:
        detail = answer.get("detail", "")
        raise AgentError(f"the daemon answers with status {response.status}: {detail}")
    return answer
