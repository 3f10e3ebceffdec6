#!/usr/bin/env bash
# Two zstd frames in one file, and pzstd's: half of the rows, all of them, or "not valid UTF-8".
#
# Guess: what zstd and pzstd write, and two such files joined by cat, is read alike by whatever says
# that it reads zstd. Seen, with zstd 1.5.4 (Debian 12), zstandard 0.25.0, pyarrow 26.0.1, duckdb
# 2.0.1 and polars 2.1.0 (PyPI): streams of zstandard, pyarrow and duckdb read all three. One call of
# zstandard's decompress() gives the first frame of two and says nothing of the rest. pzstd puts a
# skippable frame before its first one, so that its files begin with other bytes: polars, which goes
# by the first four, takes them for text that is not UTF-8, and decompress() says "decompressed 0
# bytes".
#
# What follows: rotated logs that were joined lose rows without an error in programs of one call, and
# the kind of a file is not known by 28 b5 2f fd alone.
set -euo pipefail

for tool in zstd pzstd; do command -v "$tool" >/dev/null || { echo "needs Debian's zstd"; exit 2; }; done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check zstandard==0.25.0 pyarrow==26.0.1 duckdb==2.0.1 polars==2.1.0

printf '{"n":1}\n{"n":2}\n' >rows.jsonl
zstd -q rows.jsonl -o one.jsonl.zst
cat one.jsonl.zst one.jsonl.zst >two.jsonl.zst
pzstd -q rows.jsonl -o pzstd.jsonl.zst
cat >ask.py <<'PYTHON'
import io

import duckdb
import polars as pl
import pyarrow as pa
import zstandard

for name in ("one", "two", "pzstd"):
    path = f"{name}.jsonl.zst"
    data = open(path, "rb").read()
    ways = {
        "stream": lambda: zstandard.open(io.BytesIO(data)).read().count(b"\n"),
        "decompress()": lambda: zstandard.decompress(data, max_output_size=1000).count(b"\n"),
        "pyarrow": lambda: pa.CompressedInputStream(pa.BufferReader(data), "zstd").read().count(b"\n"),
        "duckdb": lambda: duckdb.sql(f"select count(*) from '{path}'").fetchall()[0][0],
        "polars": lambda: pl.read_ndjson(path).height,
    }
    for way, read in ways.items():
        try:
            print(f"{name}, {way}: {read()} rows")
        except Exception as error:
            print(f"{name}, {way}: {type(error).__name__}")
PYTHON
venv/bin/python ask.py | tee seen
diff seen - <<'SEEN' || { echo "this has changed"; exit 1; }
one, stream: 2 rows
one, decompress(): 2 rows
one, pyarrow: 2 rows
one, duckdb: 2 rows
one, polars: 2 rows
two, stream: 4 rows
two, decompress(): 2 rows
two, pyarrow: 4 rows
two, duckdb: 4 rows
two, polars: 4 rows
pzstd, stream: 2 rows
pzstd, decompress(): ZstdError
pzstd, pyarrow: 2 rows
pzstd, duckdb: 2 rows
pzstd, polars: ComputeError
SEEN
