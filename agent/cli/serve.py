"""`equipoise init` and `equipoise serve`: an example configuration, tokens, and the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from equipoise.agent.cli import say


def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the files; it must exist.")] = Path(),
    tokens: Annotated[
        bool, typer.Option(help="Also write the tokens, to a file with mode 0600.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write an example configuration and its tokens.

    equipoise.toml is the configuration; equipoise.tokens holds a token for the router and one for
    administrators, of which the configuration has only the digests. Existing files are never
    replaced.

    Example: equipoise init
    """
    import secrets

    from equipoise.agent.config.file import example_text
    from equipoise.agent.maintenance.atomic_files import write_new

    token_texts = (
        {scope: secrets.token_urlsafe(24) for scope in ("route", "admin")} if tokens else None
    )
    config, secret = folder / "equipoise.toml", folder / "equipoise.tokens"
    files = {config: (example_text(token_texts), 0o644)}
    if token_texts is not None:
        files[secret] = (
            "".join(f"{scope} {token}\n" for scope, token in token_texts.items()),
            0o600,
        )
    write_new(files)
    if as_json:
        import msgspec

        written = {"config": str(config), "tokens": str(secret) if token_texts else None}
        typer.echo(msgspec.json.encode(written).decode())
        return
    typer.echo(f"{config}: describe your models, features and reward here")
    typer.echo(
        "reward.window: how long a reward is waited for (a day here); without one, a reward that"
        " never comes stops certification for good"
    )
    if token_texts is not None:
        typer.echo(f"{secret}: tokens of the router (route) and of admins; keep it to yourself")
    typer.echo(f"Next: equipoise serve --config {config} --check")


def serve(
    config: Annotated[Path, typer.Option(help="The configuration (equipoise.toml).")],
    store: Annotated[
        str | None,
        typer.Option(
            help="The store, a file or URL; created if it does not exist.",
            show_default="service.store",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="service.host")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port; 0 picks a free one.", show_default="service.port"
        ),
    ] = None,
    uds: Annotated[
        Path | None,
        typer.Option(
            help="Listen on this Unix socket, and on no port.", show_default="service.uds"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Deciders that share the port, each a process of its own beside an authority.",
            show_default="one process alone",
        ),
    ] = None,
    role: Annotated[
        Literal["authority", "decider", "both"],
        typer.Option(
            help="What this machine does: deciders alone, their authority alone, or both."
        ),
    ] = "both",
    key: Annotated[
        Path | None,
        typer.Option(help="The key file of the experiment.", show_default="service.key"),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Only check configuration and database, and forecast growth.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: print JSON.")] = False,
) -> None:
    """Run the daemon: decide requests over HTTP and learn.

    Without a token it listens on loopback only. It stops on SIGTERM and SIGINT without losing
    anything, and rereads its configuration on SIGHUP. While the file STORE.kill exists, requests
    are passed through without a decision. Exit code 70 means that its state fell behind its log:
    start it again.

    With --workers N several deciders share the port, and an authority beside them keeps the store.
    On several machines the store is a PostgreSQL database: one runs --role authority, the others
    --role decider with a copy of the key.

    Example: equipoise serve --config equipoise.toml --port 8080
    """
    import msgspec

    from equipoise.agent.service.roles import check_database, check_lanes
    from equipoise.agent.service.roles import serve as serve_role
    from equipoise.agent.service.run import check_only

    options = {
        "store": store,
        "host": host,
        "port": port,
    }
    overrides: dict[str, object] = {
        name: value for name, value in options.items() if value is not None
    }
    if key is not None:
        overrides["key"] = str(key)
    if uds is not None:
        if host is not None or port is not None:
            raise typer.BadParameter("leave --host and --port out", param_hint="--uds")
        overrides["uds"] = str(uds)
    elif host is not None or port is not None:
        overrides["uds"] = None
    if workers is not None and role == "authority":
        raise typer.BadParameter("an authority has no deciders", param_hint="--workers")
    if check:
        if workers is not None or role != "both":
            check_lanes(config, overrides)
        found = check_database(config, overrides, role)
        one = workers is None and role == "both" and not found
        deciders = None if one else 0 if role == "authority" else workers or 1
        facts = check_only(config, overrides, deciders, authority=role != "decider")
        sentence = facts.pop("sentence")
        if found:
            facts["database"] = found
            sentence = f"{sentence}\n{found['sentence']}"
        if as_json:
            typer.echo(msgspec.json.encode(facts).decode())
        else:
            say(sentence.splitlines())
        if found.get("refused"):
            raise typer.Exit(2)
    else:
        raise typer.Exit(serve_role(config, overrides, role, workers))
