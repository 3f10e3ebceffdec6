"""`equipoise serve`: the daemon beside a production router."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    config: Annotated[Path, typer.Option(help="The configuration (equipoise.toml).")],
    store: Annotated[
        Path | None,
        typer.Option(help="The store, made where there is none.", show_default="service.store"),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="service.host")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port; 0 takes a free one.", show_default="service.port"
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Only check the configuration, and say how the store will grow.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: print JSON.")] = False,
) -> None:
    """Decide requests over HTTP, log them, learn from their outcomes.

    Without a token it listens on loopback only. It stops on SIGTERM and SIGINT and loses nothing,
    and reads its configuration again on SIGHUP. While the file STORE.kill exists, requests are
    passed through undecided. Exit code 70 asks for a new start: its state is behind its log.

    Example: equipoise serve --config equipoise.toml --port 8080 --store experiment.db
    """
    import msgspec

    from equipoise.agent.service.run import check_only, run

    given = {
        "store": None if store is None else str(store),
        "host": host,
        "port": port,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    if check:
        facts = check_only(config, overrides)
        sentence = facts.pop("sentence")
        typer.echo(msgspec.json.encode(facts).decode() if as_json else sentence)
    else:
        raise typer.Exit(run(config, overrides))
