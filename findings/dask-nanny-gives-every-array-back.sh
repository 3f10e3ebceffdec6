#!/usr/bin/env bash
# Dask 2026.8.0: the nanny's malloc setting makes work on middle-sized arrays slower.
#
# Guess: a computation takes as much processor time in a Dask worker as in a plain process, give or
# take the cost of a task. Seen, with distributed 2026.8.0, numpy 2.4.6 (PyPI) and glibc: a worker
# under a nanny has MALLOC_TRIM_THRESHOLD_=65536 in its environment, which also switches off glibc's
# own growth of the threshold for mmap; so arrays of a few hundred kilobytes are got from the system,
# page by page, and given back each time. The same function takes 1.3 times as much processor time
# or more under the nanny as in a worker started with --no-nanny (printed as a comparison, since the
# factor is the machine's). A higher MALLOC_TRIM_THRESHOLD_ alone does not help:
# MALLOC_MMAP_THRESHOLD_ must rise with it, or mallopt be called for both in the process.
#
# What follows: a sweep timed on Dask and on local processes differs by a third for no reason of
# scheduling. What is known of glibc's defaults does not hold in a Dask worker.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check distributed==2026.8.0 numpy==2.4.6

cat >"$folder/pages.py" <<'PYTHON'
import os
import subprocess
import sys
import time

import distributed
import numpy


def work() -> tuple[str, float]:
    """The malloc setting, and the processor time of adding up fresh arrays of 400 kB."""
    rows = numpy.ones(50_000)

    def seconds() -> float:
        began = time.thread_time()
        for _ in range(300):
            a = rows + 1.0
            b = a * 2.0
            c = b - a
            del a, b, c
        return time.thread_time() - began

    seconds()
    return os.environ.get("MALLOC_TRIM_THRESHOLD_", "none"), min(seconds() for _ in range(5))


def measured(*options: str) -> tuple[str, float]:
    dask = os.path.join(os.path.dirname(sys.executable), "dask")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = ["--no-dashboard", "--scheduler-file", "scheduler.json"]
    started = [
        subprocess.Popen([dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *words], **quiet),
        subprocess.Popen([dask, "worker", "--nthreads", "1", *options, *words], **quiet),
    ]
    try:
        while not os.path.exists("scheduler.json"):
            time.sleep(0.1)
        with distributed.Client(scheduler_file="scheduler.json") as client:
            client.wait_for_workers(1, timeout=60)
            return client.submit(work, pure=False).result(timeout=60)
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(20)
        if os.path.exists("scheduler.json"):
            os.remove("scheduler.json")


if __name__ == "__main__":
    print("distributed", distributed.__version__, "numpy", numpy.__version__)
    plain, short = measured("--no-nanny")
    nanny, long = measured()
    print("without a nanny, MALLOC_TRIM_THRESHOLD_:", plain)
    print("under a nanny, MALLOC_TRIM_THRESHOLD_:", nanny)
    print("under a nanny it takes at least 1.3 times as long:", long >= 1.3 * short)
    print(f"processor time: {short:.3f} s and {long:.3f} s", file=sys.stderr)
PYTHON
cd "$folder"
unset MALLOC_TRIM_THRESHOLD_
timeout 150 venv/bin/python pages.py 2>errors | tee seen
grep "processor time" errors || true
diff seen - <<'SEEN' || { cat errors; echo "this has changed"; exit 1; }
distributed 2026.8.0 numpy 2.4.6
without a nanny, MALLOC_TRIM_THRESHOLD_: none
under a nanny, MALLOC_TRIM_THRESHOLD_: 65536
under a nanny it takes at least 1.3 times as long: True
SEEN
