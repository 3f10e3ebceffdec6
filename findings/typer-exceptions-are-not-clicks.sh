#!/usr/bin/env bash
# typer 0.29.2 beside click 8.5.1: no exception of typer is one of the installed click.
#
# Guess: typer is built on click, so a program that calls an app with standalone_mode=False catches
# mistakes of the command line with `except click.UsageError` or `except click.ClickException`. Seen,
# with typer == 0.29.2 and click == 8.5.1 from PyPI: typer carries a copy of click of its own
# (typer._click). A wrong option raises typer._click.exceptions.NoSuchOption, which neither class of
# the installed click catches; typer.BadParameter is of the copy as well, and typer does not even
# require click. Completion differs by name too: the variable wants `source_bash`, click's
# `bash_source` is answered with "not supported".
#
# What follows: one's own form of refusal is caught by a class found from typer itself, such as
# `typer.BadParameter.__base__`; an `except click...` compiles, and never runs.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check typer==0.29.2 click==8.5.1

cat >"$folder/ask.py" <<'PYTHON'
import importlib.metadata as metadata

import click
import typer

app = typer.Typer(add_completion=True)


@app.command()
def main(number: int = 1) -> None:
    print(number)


def caught_by(kind: type[BaseException]) -> bool:
    try:
        app(["--nope"], standalone_mode=False)
    except kind:
        return True
    except Exception:
        return False
    return False


requires = metadata.requires("typer") or []
print("click.UsageError catches it:", caught_by(click.UsageError))
print("click.ClickException catches it:", caught_by(click.ClickException))
print("typer.BadParameter.__base__ catches it:", caught_by(typer.BadParameter.__base__))
print("typer requires click:", any(each.lower().startswith("click") for each in requires))
PYTHON
"$folder/venv/bin/python" "$folder/ask.py" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN' || { echo "this has changed"; exit 1; }
click.UsageError catches it: False
click.ClickException catches it: False
typer.BadParameter.__base__ catches it: True
typer requires click: False
SEEN
