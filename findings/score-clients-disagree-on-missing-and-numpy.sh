#!/usr/bin/env bash
# langfuse 5.0.4 and langsmith 0.15.1: NaN, None and numpy's True go out as different things.
#
# Guess: a client for scores sends a missing reward as nothing or refuses it, and a thumb is the
# same value whether it is Python's True or numpy's, as it comes out of a frame. Seen, with langfuse
# 5.0.4, langsmith 0.15.1 and numpy 2.4.6 (PyPI) against a server on the loopback address; no call
# raises. langfuse sends NaN as the text "NaN" and an infinity as "Infinity", without a type, under
# the name of a numeric score; None as a score without a value; True as 1.0 but numpy's True as
# true; 2**53 + 1 as 2**53. langsmith sends NaN and infinities as null, True as true but numpy's
# True as 1.0, and 2**53 + 1 as it is. So the two turn the two kinds of True into number and boolean
# the opposite way round.
#
# What follows: an export of scores is read with a rule for each of text "NaN", null, absent, true
# and 1.0, or a missing reward becomes a category and half of the thumbs another type than the rest.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check langfuse==5.0.4 langsmith==0.15.1 numpy==2.4.6

cat >"$folder/send.py" <<'PYTHON'
import gzip
import http.server
import json
import threading
import uuid
import warnings

import numpy as np
from langfuse import Langfuse
from langsmith import Client

warnings.simplefilter("ignore")
received: list[tuple[str, dict]] = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path.endswith(("/scores", "/feedback")):
            sent = json.loads(body)
            received.extend((self.path, row) for row in (sent if isinstance(sent, list) else [sent]))
        answer = b"{}"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
SCORES = {
    "half": 0.5,
    "true": True,
    "numpy true": np.bool_(True),
    "nan": float("nan"),
    "inf": float("inf"),
    "large": 2**53 + 1,
    "none": None,
}

fuse = Langfuse(public_key="p", secret_key="s", base_url=url)
smith = Client(api_url=url, api_key="k", auto_batch_tracing=False)
for name, score in SCORES.items():
    fuse.create_score(name=name, value=score, trace_id="1" * 32)
    smith.create_feedback(run_id=uuid.uuid4(), key=name, score=score)
fuse.flush()

for client, path, key, field in (
    ("langfuse", "/scores", "name", "value"),
    ("langsmith", "/feedback", "key", "score"),
):
    sent = {row[key]: row for where, row in received if where.endswith(path)}
    for name in SCORES:
        row = sent[name]
        typed = f", type {row['dataType']}" if "dataType" in row else ""
        print(f"{client} {name}:", (json.dumps(row[field]) if field in row else "absent") + typed)
PYTHON
cd "$folder"
timeout 120 venv/bin/python send.py 2>errors | tee seen
diff seen - <<'SEEN' || { cat errors; echo "this has changed"; exit 1; }
langfuse half: 0.5
langfuse true: 1.0
langfuse numpy true: true
langfuse nan: "NaN"
langfuse inf: "Infinity"
langfuse large: 9007199254740992.0
langfuse none: absent
langsmith half: 0.5
langsmith true: true
langsmith numpy true: 1.0
langsmith nan: null
langsmith inf: null
langsmith large: 9007199254740993
langsmith none: absent
SEEN
