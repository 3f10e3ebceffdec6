#!/usr/bin/env bash
# A latency of 1.5 s as a duration: by file it becomes 1.5 million, 1500, "PT1.5S" or 12 bytes.
#
# Guess: a duration that pandas or polars writes to Parquet is a duration, or an INTERVAL, in DuckDB,
# and the other way round; as JSON the two frames write the same. Seen, with pandas 3.1.1, polars
# 2.1.0, duckdb 2.0.1 and pyarrow 26.0.1 (PyPI): DuckDB reads their Parquet as BIGINT without a word,
# 1500000, since Parquet itself has no type of durations and the unit stands in Arrow's metadata
# alone. DuckDB's own INTERVAL is twelve bytes to pyarrow: months, days and milliseconds of 4 bytes
# each. As JSON polars writes ISO 8601, pandas a number of milliseconds; as CSV DuckDB writes
# 00:00:01.5, pandas "0 days 00:00:01.500000", and polars refuses.
#
# What follows: write latencies as numbers, with the unit in the name. A table that went through
# DuckDB once holds microseconds, which here are refused or taken for milliseconds by their size.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check \
    pandas==3.1.1 polars==2.1.0 duckdb==2.0.1 pyarrow==26.0.1 numpy==2.4.6

cat >ask.py <<'PYTHON'
import warnings
from datetime import timedelta

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq

warnings.simplefilter("ignore")
took = timedelta(seconds=1.5)
by_pandas, by_polars = pd.DataFrame({"took": [took]}), pl.DataFrame({"took": [took]})
by_pandas.to_parquet("pandas.parquet")
by_polars.write_parquet("polars.parquet")
for name in ("pandas", "polars"):
    kind, value = duckdb.sql(f"select typeof(took), took from '{name}.parquet'").fetchall()[0]
    print(f"{name} wrote {pq.read_schema(f'{name}.parquet').field('took').type}; duckdb reads {kind} {value}")
duckdb.sql("copy (select interval 1500 milliseconds as took) to 'duckdb.parquet'")
column = pq.read_table("duckdb.parquet")["took"]
numbers = [int.from_bytes(column[0].as_py()[at : at + 4], "little") for at in (0, 4, 8)]
print(f"duckdb wrote an INTERVAL; pyarrow reads {column.type}, {numbers}")
print("JSON:", by_polars.write_ndjson().strip(), by_pandas.to_json(orient="records", lines=True).strip())
duckdb.sql("copy (select interval 1500 milliseconds as took) to 'duckdb.csv'")
print("CSV:", open("duckdb.csv").read().split()[1], "|", by_pandas.to_csv(index=False).split("\n")[1])
try:
    print(by_polars.write_csv())
except pl.exceptions.ComputeError:
    print("CSV by polars: ComputeError")
PYTHON
venv/bin/python ask.py | tee seen
diff seen - <<'SEEN' || { echo "this has changed"; exit 1; }
pandas wrote duration[us]; duckdb reads BIGINT 1500000
polars wrote duration[us]; duckdb reads BIGINT 1500000
duckdb wrote an INTERVAL; pyarrow reads fixed_size_binary[12], [0, 0, 1500]
JSON: {"took":"PT1.5S"} {"took":1500}
CSV: 00:00:01.5 | 0 days 00:00:01.500000
CSV by polars: ComputeError
SEEN
