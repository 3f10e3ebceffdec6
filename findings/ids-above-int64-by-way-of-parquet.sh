#!/usr/bin/env bash
# Ids above 2**63 by way of Parquet: duckdb and pyarrow round them, and polars' file is polars' own.
#
# Guess: 64-bit ids (hashes, as xxhash and FarmHash make them) that stand in a CSV come through any
# of the four common table tools exactly, or are refused; and what one of them writes as Parquet the
# others read. Seen, with pandas 3.1.1, pyarrow 26.0.1, duckdb 2.0.1 and polars 2.1.0 (PyPI), on the
# ids 2**64 - 1, 2**64 - 2, 2**53 + 1 and 2**53 + 2: pandas writes uint64, exact for all. pyarrow's
# CSV reader makes the whole column double as soon as one id is above 2**63 - 1: three distinct ids
# are left. duckdb reads the column as HUGEINT, exact while it stays in duckdb, and writes it to
# Parquet, and into a pandas frame, as double: three left as well; as an arrow table it is
# decimal128(38, 0), exact. polars reads Int128 and writes a Parquet file that polars reads back
# exactly; pyarrow, and so pandas, raise ArrowNotImplementedError for it, even when asked for
# another column alone, and duckdb finds 16 bytes of BLOB, the low end first.
#
# What follows: ids are text from the first tool on. A float that is an id is refused at 2**53 and
# above, where its last digit cannot be known, and a Parquet file that pyarrow cannot read is not
# called "no Parquet".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
    pandas==3.1.1 pyarrow==26.0.1 duckdb==2.0.1 polars==2.1.0 numpy==2.4.6

cat >"$folder/convert.py" <<'PYTHON'
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

IDS = [2**64 - 1, 2**64 - 2, 2**53 + 1, 2**53 + 2]
with open("ids.csv", "w") as file:
    file.write("id,reward\n" + "".join(f"{number},1\n" for number in IDS))

pd.read_csv("ids.csv").to_parquet("pandas.parquet")
pq.write_table(pa_csv.read_csv("ids.csv"), "pyarrow.parquet")
duckdb.sql("copy (from 'ids.csv') to 'duckdb.parquet'")
pl.read_csv("ids.csv").write_parquet("polars.parquet")


def told(kind: object, values: list) -> str:
    return f"{kind}, {'exact' if values == IDS else f'{len(set(values))} distinct'}"


def by_pyarrow(path: str, columns: list[str]) -> str:
    try:
        column = pq.read_table(path, columns=columns).column(0)
    except pa.ArrowNotImplementedError:
        return "ArrowNotImplementedError"
    return told(column.type, column.to_pylist())


for writer in ("pandas", "pyarrow", "duckdb", "polars"):
    path = f"{writer}.parquet"
    print(f"{writer} wrote; pyarrow reads {by_pyarrow(path, ['id'])}")
    kinds, values = zip(*duckdb.sql(f"select typeof(id), id from '{path}'").fetchall())
    print(f"{writer} wrote; duckdb reads {told(kinds[0], list(values))}")
    column = pl.read_parquet(path)["id"]
    print(f"{writer} wrote; polars reads {told(column.dtype, column.to_list())}")

print("polars wrote; pyarrow reads of the reward alone:", by_pyarrow("polars.parquet", ["reward"]))
blobs = [row[0] for row in duckdb.sql("select id from 'polars.parquet'").fetchall()]
numbers = [int.from_bytes(blob, "little") for blob in blobs]
print("polars wrote; duckdb's bytes, the low end first:", told("BLOB", numbers))
csv = duckdb.sql("from 'ids.csv'")
print("duckdb itself:", told(csv.types[0], [row[0] for row in csv.fetchall()]))
print("duckdb to pandas:", told(csv.df()["id"].dtype, csv.df()["id"].tolist()))
table = csv.to_arrow_table()
print("duckdb to arrow:", told(table["id"].type, [int(number) for number in table["id"].to_pylist()]))
PYTHON
cd "$folder"
venv/bin/python convert.py | tee seen
diff seen - <<'SEEN' || { echo "this has changed"; exit 1; }
pandas wrote; pyarrow reads uint64, exact
pandas wrote; duckdb reads UBIGINT, exact
pandas wrote; polars reads UInt64, exact
pyarrow wrote; pyarrow reads double, 3 distinct
pyarrow wrote; duckdb reads DOUBLE, 3 distinct
pyarrow wrote; polars reads Float64, 3 distinct
duckdb wrote; pyarrow reads double, 3 distinct
duckdb wrote; duckdb reads DOUBLE, 3 distinct
duckdb wrote; polars reads Float64, 3 distinct
polars wrote; pyarrow reads ArrowNotImplementedError
polars wrote; duckdb reads BLOB, 4 distinct
polars wrote; polars reads Int128, exact
polars wrote; pyarrow reads of the reward alone: ArrowNotImplementedError
polars wrote; duckdb's bytes, the low end first: BLOB, exact
duckdb itself: HUGEINT, exact
duckdb to pandas: float64, 3 distinct
duckdb to arrow: decimal128(38, 0), exact
SEEN
