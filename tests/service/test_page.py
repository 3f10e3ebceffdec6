"""The page at `/`, in a real browser: what it shows, what it does, and what it never does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Tab, browsing
from running import CONFIG, Running, running

from equipoise.agent.service.api.estimates import EstimatesAnswer, ModelEstimate, WatermarkAnswer
from equipoise.agent.service.page import History

NASTY = "<img src=x onerror=document.title='taken'> & \"'</script>"
ROUTE, ADMIN = "route-token-of-length", "admin-token-of-length"
TOKENS = f"""
tokens = [
  {{name = "router", scope = "route", token = "{ROUTE}"}},
  {{name = "boss", scope = "admin", token = "{ADMIN}"}},
]
"""
BUDGET = CONFIG + "[budget]\nrequests = 500\n"


def traffic(daemon: Running, requests: int = 120, token: str | None = None) -> None:
    lines = [
        {"routed": model, "features": {"words": i}, "outputs": {"seconds": i % 7}, "reward": i % 2}
        for i in range(60)
        for model in ("large", "small")
    ]
    replays = [
        {"context_id": f"c{i}", "model": model, "features": {"words": i}, "outputs": {"seconds": i}}
        for i in range(30)
        for model in ("large", "small")
    ]
    for path, rows in (("/v1/observations", lines), ("/v1/simulations", replays)):
        body = "\n".join(map(json.dumps, rows)).encode()
        assert daemon.ask("POST", path, body, token).status == 200
    for i in range(requests):
        asked = {"request_id": f"r{i}", "routed": "large", "features": {"words": i}}
        made = daemon.ask("POST", "/v1/decide", asked, token).json
        outcome = {"request_id": f"r{i}", "outputs": {"seconds": 1.0}, "reward": i % 3 / 2}
        if "outcome_token" in made:
            outcome["outcome_token"] = made["outcome_token"]
        assert daemon.ask("POST", "/v1/outcomes", outcome, token).status == 200


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("page"), config=BUDGET) as daemon:
        traffic(daemon)
        yield daemon


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With tokens."""
    with running(tmp_path_factory.mktemp("guarded"), TOKENS) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Tab:
    """Empty, with the size and the colours of a desk, and nothing heard or asked yet."""
    browser.visit("about:blank")
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", features=[])
    browser.console.clear()
    browser.requested.clear()
    return browser


def text(tab: Tab, selector: str = "body") -> str:
    found: str = tab.run(f"document.querySelector({json.dumps(selector)}).innerText")
    return found


def certified_text(lower: float, upper: float, span: tuple[float, float], sign: str = "") -> str:
    """How the page says two ends; one that is the end of the range of rewards is not known."""

    def of(value: float) -> str:
        return (sign if value > 0 else "") + f"{value:.3f}".replace("-", "−")

    low, high = (of(lower), of(upper))
    if lower <= span[0] and upper >= span[1]:
        return "nothing certified"
    if lower <= span[0]:
        return f"at most {high}"
    return f"at least {low}" if upper >= span[1] else f"{low} … {high}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_what_the_daemon_knows(daemon: Running, tab: Tab, scheme: str) -> None:
    preferred = {"name": "prefers-color-scheme", "value": scheme}
    tab.call("Emulation.setEmulatedMedia", features=[preferred])
    address = f"http://127.0.0.1:{daemon.port}/"
    estimates = daemon.ask("GET", "/v1/estimates").json
    answer = daemon.ask("GET", "/v1/recommendation").json
    tab.visit(address)
    tab.until("document.documentElement.dataset.shown == 'yes'")
    assert text(tab, "#experiment") == "chat"
    for part in ("certified", "estimate", "outlook"):
        assert text(tab, f"#{part}") == answer[f"{part}_sentence"]
    assert text(tab, "#mode") == answer["activity_sentence"]
    assert text(tab, "#pills").split() == " ".join(p["text"] for p in answer["pills"]).split()
    values = text(tab, "#values")
    for row in (*estimates["models"], estimates["todays_routing"]):
        shown = row["shown"]
        assert row["model"] in values
        assert f"{shown['value']:.3f} ± {1.959964 * shown['standard_error']:.3f}" in values
        assert certified_text(row["lower"], row["upper"], (0.0, 1.0)) in values
        if row["log_mean"] is not None:
            assert f"log {row['log_mean']:.3f} ±" in values
    for mark, times in ((".log-mark", 2), (".routing-band", 3), ("circle.fill", 3)):
        assert tab.run(f"document.querySelectorAll('#values svg {mark}').length") == times
    differences = text(tab, "#comparisons")
    for row in estimates["comparisons"]:
        assert f"{row['model']} − {row['other']}" in differences
        assert certified_text(row["lower"], row["upper"], (-1.0, 1.0), sign="+") in differences
    assert tab.run("document.querySelectorAll('#comparisons .zero-line').length") == 2
    for chart in ("values", "comparisons"):
        labels = tab.run(f"[...document.querySelectorAll('#{chart} .axis text')].length")
        assert labels >= 3
    spent = estimates["randomized"]
    assert f"{500 - spent} of 500 requests are left" in text(tab, "#budget")
    drawn = sum(row["era_draws"] for row in estimates["models"])
    assert f"{drawn} randomized requests whose reward came" in text(tab, "#spent")
    assert tab.run("document.getElementById('eras-section').hidden")
    for number in range(200):
        made = daemon.decide(f"{scheme}{number}")
        outcome = {"request_id": f"{scheme}{number}", "outputs": {"seconds": 1.0}, "reward": 1.0}
        daemon.ask("POST", "/v1/outcomes", outcome | {"outcome_token": made["outcome_token"]})
        if made["randomized"]:
            break
    daemon.ask("GET", "/v1/estimates")
    tab.run("refresh()")
    tab.until("document.querySelectorAll('#history svg path.line').length == 2")
    assert tab.run("document.querySelectorAll('#history svg path.routing-line').length") == 1
    colour = tab.run("getComputedStyle(document.body).color")
    assert colour == {"light": "rgb(26, 29, 35)", "dark": "rgb(232, 234, 238)"}[scheme]
    assert tab.console == []
    assert tab.run("document.getElementById('trouble').hidden")
    urls = [url for url in tab.requested if url != "about:blank"]
    assert urls
    assert all(url.startswith(address) for url in urls), "it asks nobody but the daemon"


def test_it_fits_a_phone(daemon: Running, tab: Tab) -> None:
    tab.call(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=740,
        deviceScaleFactor=2,
        mobile=True,
    )
    tab.visit(f"http://127.0.0.1:{daemon.port}/")
    tab.until("document.documentElement.dataset.shown == 'yes'")
    assert tab.run("document.documentElement.scrollWidth") <= 360
    buttons = "[...document.querySelectorAll('button')].filter(b => !b.hidden)"
    small = f"{buttons}.filter(b => b.offsetHeight < 40).length"
    assert tab.run(f"{buttons}.length") >= 2
    assert tab.run(small) == 0
    shown = "document.querySelector('#values .figure').getBoundingClientRect().width"
    assert tab.run(shown) > 250


def test_pause_and_resume_with_a_token_that_stays_in_memory(guarded: Running, tab: Tab) -> None:
    daemon = guarded
    traffic(daemon, 5, ROUTE)
    # As a browser asks for the page itself: the token as a password.
    tab.call("Page.navigate", url=f"http://user:{ROUTE}@127.0.0.1:{daemon.port}/")
    tab.until("document.documentElement.dataset.shown == 'yes'")
    tab.type("#reason", NASTY)
    tab.click("#pause")
    tab.until("document.getElementById('said').textContent.includes('needs scope admin')")
    assert daemon.ask("GET", "/readyz").json["mode"]["paused"] is False
    tab.type("#token", ADMIN)
    tab.click("#pause")
    tab.until("document.getElementById('said').textContent == 'Paused.'")
    tab.until("document.getElementById('pills').textContent.includes('paused')")
    assert daemon.ask("GET", "/readyz").json["mode"]["paused"] is True
    # What somebody wrote is text on the page, and no element of it.
    assert NASTY in text(tab, "#mode")
    assert NASTY in text(tab, "main")
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert "taken" not in tab.run("document.title")
    tab.click("#resume")
    tab.until("document.getElementById('said').textContent == 'Resumed.'")
    assert daemon.ask("GET", "/readyz").json["mode"]["paused"] is False
    kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert tab.run(kept) == '[{},{},""]'
    tab.call("Page.reload")
    tab.until("document.readyState == 'complete' && !!document.getElementById('token')")
    assert tab.run("document.getElementById('token').value") == ""


def test_it_ends_only_after_a_confirmation_and_says_what_was_spent(
    guarded: Running, tab: Tab
) -> None:
    daemon = guarded
    tab.visit(f"http://127.0.0.1:{daemon.port}/")
    tab.type("#token", ADMIN)
    tab.until("document.documentElement.dataset.shown == 'yes'")
    tab.click("#end")
    assert "again to end" in text(tab, "#said")
    assert daemon.ask("GET", "/readyz").json["mode"]["ended"] is None
    tab.click("#end")
    tab.until("document.getElementById('said').textContent == 'Ended.'")
    tab.until("document.getElementById('end').disabled")
    assert daemon.ask("GET", "/readyz").json["mode"]["ended"]["certified"] is False
    spent = daemon.ask("GET", "/v1/budget", token=ROUTE).json["spent"]
    table = text(tab, "#budget table")
    for row in (*spent["models"], spent | {"model": "in all"}):
        assert f"{row['model']}\t{row['requests']}\t{row['usd']:.2f}" in table
    tab.click("#resume")
    tab.until("!document.getElementById('end').disabled")


def test_an_answer_stays_visible_after_its_era_and_a_model_says_what_it_waits_for(
    tmp_path: Path, tab: Tab
) -> None:
    with running(tmp_path) as daemon:
        traffic(daemon, 60)
    added = CONFIG.replace("price = 0.01}]", 'price = 0.01}, {name = "tiny"}]')
    with running(tmp_path, config=added) as daemon:
        tab.visit(f"http://127.0.0.1:{daemon.port}/")
        tab.until("document.documentElement.dataset.shown == 'yes'")
        ended, running_era = daemon.ask("GET", "/v1/eras").json["eras"]
        shown = text(tab, "#eras")
        assert ended["answer"]["sentence"] in shown
        assert f"Ended: {ended['ended_reason']}" in shown
        assert "large, small, tiny" in shown
        assert running_era["answer"] is None
        assert "no replays of it: hierarchical waits" in text(tab, "#values")
        assert tab.console == []


def test_it_says_when_the_daemon_is_gone_and_when_it_is_back(tmp_path: Path, tab: Tab) -> None:
    with running(tmp_path) as daemon:
        port = daemon.port
        tab.visit(f"http://127.0.0.1:{port}/")
        tab.until("document.documentElement.dataset.shown == 'yes'")
    tab.run("refresh()")
    tab.until("document.getElementById('trouble').textContent == 'The daemon does not answer.'")
    with running(tmp_path, "", "--port", str(port)):
        tab.run("refresh()")
        tab.until("document.getElementById('trouble').hidden")


def test_nothing_of_it_is_open_where_there_are_tokens(guarded: Running) -> None:
    for path in ("/", "/page.css", "/page.js", "/charts.js", "/page/history"):
        assert guarded.ask("GET", path).status == 401
        assert guarded.ask("GET", path, token=ROUTE).status == 200


def test_its_headers_forbid_everything_else(daemon: Running) -> None:
    for path in ("/", "/page.css", "/page.js", "/charts.js", "/page/history"):
        policy = daemon.ask("GET", path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
    folder = files("equipoise.agent.service.page")
    script = "".join(folder.joinpath(name).read_text() for name in ("page.js", "charts.js"))
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script
    html = files("equipoise.agent.service.page").joinpath("page.html").read_text()
    assert not re.search(r"https?://|\son\w+=|<style|style=", html)


def estimates(rows: int) -> EstimatesAnswer:
    row = ModelEstimate(
        model="a",
        value=0.5,
        standard_error=0.1,
        interval=None,
        lower=None,
        upper=None,
        log_mean=None,
        exp_rewards=rows,
    )
    return EstimatesAnswer(
        experiment="chat",
        at=float(rows),
        log_rows=rows,
        decisions=rows,
        randomized=rows,
        waiting=0,
        watermark=WatermarkAnswer(
            held_back=0, decision_id=None, at=None, sentence="0 wait for their outcome."
        ),
        estimator="ipw",
        delta=0.05,
        sequence="bounded",
        assumptions=[],
        certified_rows=rows,
        era=0,
        segments=[],
        models=[row],
        todays_routing=row,
        contrasts=[],
        families={},
    )


@pytest.mark.parametrize("count", [1, 7, 8, 9, 50, 1000])
def test_the_history_is_bounded_and_evenly_spread(count: int) -> None:
    history = History(most=8)
    assert history.answer().points == []
    for rows in range(1, count + 1):
        history.add(estimates(rows))
        history.add(estimates(rows))
    found = [point.log_rows for point in history.answer().points]
    assert found[0] == 1
    assert found[-1] == count
    assert min(count, 4) <= len(found) <= 9
    steps = {later - earlier for earlier, later in pairwise(found[:-1])}
    assert len(steps) <= 1
