#!/usr/bin/env bash
# libfaketime 0.9.10 with the monotonic clock left alone, and Python 3.11 or newer: time.sleep fails.
#
# Guess: FAKETIME_DONT_FAKE_MONOTONIC=1 is the way to step a program's wall clock and keep its
# timers, so a test of clock steps needs nothing else. Seen, with libfaketime == 0.9.10-2.1 from
# Debian 12 and Python 3.11.7, 3.12.1 and 3.13.0: every time.sleep raises OSError 22 (Invalid
# argument) at once, whatever the offset (+1d, +0.1 s, -1h). Python 3.10.13, which sleeps by
# select(), sleeps as asked; from 3.11 on it sleeps by clock_nanosleep() until an absolute time of
# the monotonic clock. Without the variable, with monotonic time shifted too, it sleeps. A thread
# that was to notify somebody after a sleep dies, and who waits for it sees a time-out: it looks as
# if the notification had been lost.
#
# What follows: clocks of a Python program are stepped by a source of its own, or by a preload
# library that shifts clock_gettime(CLOCK_REALTIME) alone.
set -euo pipefail

version=0.9.10-2.1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cd "$folder"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer"; exit 2; }
apt-get download -q "libfaketime=$version" >/dev/null 2>&1 || { echo "Debian's libfaketime == $version could not be had"; exit 2; }
dpkg -x libfaketime_*.deb x
library=$(find "$folder/x" -name libfaketime.so.1)

cat >sleep.py <<'PYTHON'
import time
begun = time.monotonic()
try:
    time.sleep(0.2)
    print("slept" if time.monotonic() - begun >= 0.15 else "came back early")
except OSError as error:
    print(f"OSError {error.errno}")
PYTHON

python3 --version
for offset in +1d +0.1 -1h; do
    alone=$(FAKETIME_DONT_FAKE_MONOTONIC=1 LD_PRELOAD=$library FAKETIME=$offset timeout 20 python3 sleep.py)
    both=$(LD_PRELOAD=$library FAKETIME=$offset timeout 20 python3 sleep.py)
    echo "offset $offset: monotonic clock left alone: $alone; shifted too: $both"
    [ "$alone" = "OSError 22" ] && [ "$both" = "slept" ] || { echo "this has changed"; exit 1; }
done
