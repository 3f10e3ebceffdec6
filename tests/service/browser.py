"""A real browser for tests, driven over its own debugging protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

WAIT_SECONDS = 30.0


class Tab:
    """One page. console: what it complained about."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._sent = 0
        self.console: list[str] = []
        self.requested: list[str] = []
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        while True:
            answer = json.loads(self._connection.recv(WAIT_SECONDS))
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        method, given = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.console.append(str(given["exceptionDetails"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.console.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requested.append(given["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true; while a page is loading it may fail."""
        end = time.monotonic() + WAIT_SECONDS
        while not (value := self.run(f"(() => {{ try {{ return {script} }} catch {{}} }})()")):
            assert time.monotonic() < end, (
                f"never true: {script}\n{self.run('document.body.innerText')}"
            )
            time.sleep(0.05)
        return value

    def visit(self, url: str) -> None:
        there = f"location.href.startsWith({json.dumps(url)}) && document.readyState == 'complete'"
        for tries_left in (2, 1, 0):  # a browser on a busy machine may lose a navigation
            self.call("Page.navigate", url=url)
            try:
                self.until(there)
            except AssertionError:
                if not tries_left:
                    raise
            else:
                return

    def type(self, selector: str, text: str) -> None:
        """Set a field's value as a user would, with its events."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('change'))")

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")


@contextmanager
def browsing(folder: Path, *options: str) -> Iterator[Tab]:
    """A tab of a headless Chromium; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine; on Debian: apt install chromium")
    process = subprocess.Popen(
        [
            *(found, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"),
            *("--window-size=1100,1400", *options, "about:blank"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("DevTools listening on"))
        port = line.rsplit(":", 1)[1].split("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [each for each in json.load(answer) if each["type"] == "page"]
        url = pages[0]["webSocketDebuggerUrl"]
        # Messages of a page that still polls keep the closing handshake from ending.
        with connect(url, max_size=None, close_timeout=0.5) as connection:
            yield Tab(connection)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
