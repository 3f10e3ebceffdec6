"""A sound Parquet file of which one column has integers of 128 bits, as some tools write ids."""

from __future__ import annotations

import base64
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write(path: Path, table: pa.Table, name: str = "wide") -> None:
    """The table and one more column. Its width is set in the footer: pyarrow writes none such."""
    narrow, stored = (_schema(path, table, name, kind) for kind in (pa.int32(), pa.int64()))
    schema = bytearray(base64.b64decode(stored))
    (width,) = (k for k, byte in enumerate(base64.b64decode(narrow)) if byte != schema[k])
    schema[width] = 128
    path.write_bytes(path.read_bytes().replace(stored, base64.b64encode(schema)))


def _schema(path: Path, table: pa.Table, name: str, kind: pa.DataType) -> bytes:
    pq.write_table(table.append_column(name, pa.array(range(len(table)), kind)), path)
    stored: bytes = pq.read_metadata(path).metadata[b"ARROW:schema"]
    return stored
