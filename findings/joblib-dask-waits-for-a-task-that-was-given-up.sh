#!/usr/bin/env bash
# joblib 1.6.0 on Dask 2026.8.0: a task that Dask has given up is waited for, for ever.
#
# Guess: when a worker dies more often than Dask's allowed-failures, `joblib.Parallel` with the
# backend "dask" raises KilledWorker, as `client.submit` does; and the backend uses the cluster
# however many workers it has. Seen, with joblib 1.6.0 and distributed 2026.8.0 (PyPI) and two
# workers on the loopback address, one of which is killed while it works, as a machine short of
# memory does: client.submit raises KilledWorker within a second or two; Parallel(return_as=
# "generator_unordered") hands out the other results and then waits without a word (20 s here): the
# backend passes an error to the future and not to the callback that a generator waits for. With a
# cluster of one worker, Parallel runs every call in the client's own process.
#
# What follows: a sweep that is handed to Dask through joblib hangs on the cell that exhausts a
# worker's memory, and a cluster of one large worker is idle. Futures of Dask's own client say what
# happened.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check joblib==1.6.0 distributed==2026.8.0

cat >"$folder/lose.py" <<'PYTHON'
import os
import signal
import sys
import threading
import time

import dask
import distributed
import joblib

SECONDS = 20


def work(number: int, seconds: float) -> tuple[int, int]:
    time.sleep(seconds)
    return number, os.getpid()


def main() -> None:
    print("joblib", joblib.__version__, "distributed", distributed.__version__)
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    kept = {"processes": True, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(n_workers=1, host="127.0.0.1", **kept) as cluster:
        with distributed.Client(cluster), joblib.parallel_config("dask"):
            places = joblib.Parallel()(joblib.delayed(work)(number, 0) for number in range(4))
            print("one worker, joblib: in the client's process:", {p for _, p in places} == {os.getpid()})
    with distributed.LocalCluster(n_workers=2, host="127.0.0.1", **kept) as cluster:
        with distributed.Client(cluster) as client:
            workers = list(client.run(os.getpid))
            future = client.submit(work, 0, 5, workers=workers[0], pure=False)
            time.sleep(1)
            os.kill(client.run(os.getpid)[workers[0]], signal.SIGKILL)
            try:
                future.result(timeout=SECONDS)
            except Exception as error:
                print("client.submit:", type(error).__name__)
    with distributed.LocalCluster(n_workers=2, host="127.0.0.1", **kept) as cluster:
        with distributed.Client(cluster) as client:
            process = next(iter(client.run(os.getpid).values()))
            threading.Timer(1.5, os.kill, (process, signal.SIGKILL)).start()
            results: list[int] = []

            def run() -> None:
                calls = (joblib.delayed(work)(number, 3.0) for number in range(4))
                with joblib.parallel_config("dask"):
                    for number, _ in joblib.Parallel(return_as="generator_unordered")(calls):
                        results.append(number)
                results.append(-1)

            threading.Thread(target=run, daemon=True).start()
            time.sleep(SECONDS)
            print("joblib: some results came:", 0 < len(results) < 4)
            print("joblib: it has ended or raised:", -1 in results)
            sys.stdout.flush()
            os._exit(0)  # the generator would be waited for


if __name__ == "__main__":
    main()
PYTHON
cd "$folder"
setsid timeout 120 venv/bin/python lose.py 2>errors | tee seen
diff seen - <<'SEEN' || { cat errors; echo "this has changed"; exit 1; }
joblib 1.6.0 distributed 2026.8.0
one worker, joblib: in the client's process: True
client.submit: KilledWorker
joblib: some results came: True
joblib: it has ended or raised: False
SEEN
