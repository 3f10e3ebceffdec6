"""`equipoise init`: an example configuration, and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the files; it must exist.")] = Path(),
    tokens: Annotated[
        bool, typer.Option(help="Also make tokens of both scopes, in a file of mode 0600.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Write an example equipoise.toml, and equipoise.tokens with a token for the router and one
    for admins. The configuration holds their digests only. Nothing is ever replaced.

    Example: equipoise init
    """
    import secrets

    from equipoise.agent.config.example import example_text
    from equipoise.agent.newfiles import write_new

    made = {scope: secrets.token_urlsafe(24) for scope in ("route", "admin")} if tokens else None
    config, secret = folder / "equipoise.toml", folder / "equipoise.tokens"
    files = {config: (example_text(made), 0o644)}
    if made is not None:
        files[secret] = ("".join(f"{scope} {token}\n" for scope, token in made.items()), 0o600)
    write_new(files)
    if as_json:
        import msgspec

        written = {"config": str(config), "tokens": str(secret) if made else None}
        typer.echo(msgspec.json.encode(written).decode())
        return
    typer.echo(f"{config}: describe your models, features and reward here")
    typer.echo(
        "reward.window: how long a reward is waited for (a day here); without one, a reward that"
        " never comes stops certification for good"
    )
    if made is not None:
        typer.echo(f"{secret}: tokens of the router (route) and of admins; keep it to yourself")
    typer.echo(f"Next: equipoise serve --config {config} --check")
