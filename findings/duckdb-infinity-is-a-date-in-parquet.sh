#!/usr/bin/env bash
# DuckDB's timestamp 'infinity' by way of Parquet: the year 294247, the year 9999, or an error.
#
# Guess: "valid until infinity", as PostgreSQL and DuckDB have it, is written to Parquet as null or
# refused, for Parquet has no infinite times. Seen, with duckdb 2.0.1, pyarrow 26.0.1 and pandas
# 3.1.1 (PyPI): it is written as an ordinary number of microseconds, 2**63 - 1, and minus infinity
# as its negative. DuckDB alone reads it back as infinity, and gives Python the years 9999 and 1.
# pandas has the years 294247 and -290308, with arithmetic as of any other time. pyarrow's to_pylist
# raises OverflowError for the whole column, although every other row is sound.
#
# What follows: a column that nobody asked for can end the reading of a file, and a maximum over a
# column of times can be infinity in disguise. Here such a value is text that is no time: the row is
# refused where the column is needed, and only there.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check pandas==3.1.1 duckdb==2.0.1 pyarrow==26.0.1 numpy==2.4.6

cat >ask.py <<'PYTHON'
import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = ("infinity", "2026-01-01", "-infinity")
values = ", ".join(f"(timestamp '{word}')" for word in WORDS)
duckdb.sql(f"copy (select * from (values {values}) t(until)) to 'a.parquet'")
print("duckdb, itself:", duckdb.sql("select isinf(until) from 'a.parquet'").fetchall())
print("duckdb, to Python:", [row[0].year for row in duckdb.sql("from 'a.parquet'").fetchall()])
column = pq.read_table("a.parquet")["until"]
numbers = column.cast(pa.int64()).to_pylist()
print("pyarrow, numbers:", column.type, numbers[0] == 2**63 - 1, numbers[2] == 1 - 2**63)
try:
    print("pyarrow, to Python:", column.to_pylist())
except OverflowError:
    print("pyarrow, to Python: OverflowError")
times = pd.read_parquet("a.parquet")["until"]
print("pandas:", times.dt.year.tolist(), "in 2027:", (times > "2027-01-01").tolist())
PYTHON
venv/bin/python ask.py | tee seen
diff seen - <<'SEEN' || { echo "this has changed"; exit 1; }
duckdb, itself: [(True,), (False,), (True,)]
duckdb, to Python: [9999, 2026, 1]
pyarrow, numbers: timestamp[us] True True
pyarrow, to Python: OverflowError
pandas: [294247, 2026, -290308] in 2027: [True, False, False]
SEEN
