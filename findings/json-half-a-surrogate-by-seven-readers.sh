#!/usr/bin/env bash
# A prompt that Node cut inside an emoji: one JSON line, seven Python readers, five answers.
#
# Guess: JSON.stringify of a text that slice() cut inside a character writes something that JSON
# readers agree on: all take it, or all refuse it. Seen, with Node's JSON.stringify, which writes
# the escape \ud83d (valid by the grammar of RFC 8259), and the json module, msgspec 0.21.1, orjson
# 3.13.0, pandas 3.1.1, polars 2.1.0, duckdb 2.0.1 and pyarrow 26.0.1 (PyPI): json gives a text that
# cannot be encoded, pandas drops the half, polars puts a NUL character in its place; orjson, duckdb
# and pyarrow refuse it and say why; msgspec does too, but where the line ends soon after, it says
# that the input was truncated.
#
# What follows: "truncated" is no proof that a line is cut off; the rows that a strict reader drops
# are those with emoji at a cut, which is no random part of a log; and a hash of the prompt is not
# the same in two tools. Files are read here with U+FFFD for the half.
set -euo pipefail

command -v node >/dev/null || { echo "needs node"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check msgspec==0.21.1 orjson==3.13.0 \
    pandas==3.1.1 polars==2.1.0 duckdb==2.0.1 pyarrow==26.0.1 numpy==2.4.6

node -e 'console.log(JSON.stringify({id: 1, prompt: "why 😀".slice(0, 5)}))' >cut.jsonl
cat cut.jsonl
cat >ask.py <<'PYTHON'
import json

import duckdb
import msgspec
import orjson
import pandas as pd
import polars as pl
import pyarrow.json as pj

line = open("cut.jsonl", "rb").read().strip()
WAYS = {
    "json": lambda: json.loads(line)["prompt"],
    "msgspec": lambda: msgspec.json.decode(line)["prompt"],
    "msgspec, with more after it": lambda: msgspec.json.decode(line[:-1] + b', "n": 12345678}'),
    "orjson": lambda: orjson.loads(line)["prompt"],
    "pandas": lambda: pd.read_json("cut.jsonl", lines=True)["prompt"][0],
    "polars": lambda: pl.read_ndjson("cut.jsonl")["prompt"][0],
    "duckdb": lambda: duckdb.sql("select prompt from 'cut.jsonl'").fetchall()[0][0],
    "pyarrow": lambda: pj.read_json("cut.jsonl")["prompt"][0].as_py(),
}
for name, read in WAYS.items():
    try:
        print(f"{name}: {read()!a}")
    except Exception as error:
        why = "truncated" if "truncated" in str(error) else "surrogate" in str(error) and "surrogate"
        print(f"{name}: refused, {why}")
PYTHON
venv/bin/python ask.py | tee seen
diff seen - <<'SEEN' || { echo "this has changed"; exit 1; }
json: 'why \ud83d'
msgspec: refused, truncated
msgspec, with more after it: refused, surrogate
orjson: refused, surrogate
pandas: 'why '
polars: 'why \x00'
duckdb: refused, surrogate
pyarrow: refused, surrogate
SEEN
