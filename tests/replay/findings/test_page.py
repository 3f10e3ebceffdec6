"""The page of an experiment: whole, safe, offline, and drawn by a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from equipoise.replay.findings.findings import (
    CurvePanel,
    Curves,
    Figure,
    Findings,
    Heatmaps,
    HeatPanel,
    Line,
    Measured,
    Table,
)
from equipoise.replay.findings.page import findings_page, write_page
from equipoise.replay.results.summary import FAMILIES

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
EXP = (0.0, 100.0, 300.0, 1000.0, 3000.0)
NASTY = "</script><script>document.title='taken'</script><b>bold</b> $x \" onmouseover=x"
META = {
    "benchmark": "coding",
    "title": NASTY,
    "source": NASTY,
    "models": [NASTY, "forest"],
    "exclusions": {NASTY: 3},
    "version": "0.1.0",
    "options": {"obs": 5000, "budget": [100, 3000], "seeds": 20, "world": [NASTY]},
}


def measured(mean: float, half: float = 0.01) -> Measured:
    return Measured(mean, mean - half, mean + half)


def curves(title: str, means: dict[str, tuple[float | None, ...]], **options: Any) -> Curves:
    panels = tuple(
        CurvePanel(
            f"panel {number}",
            EXP,
            tuple(
                Line(name, tuple(Measured(None) if m is None else measured(m) for m in line))
                for name, line in means.items()
            ),
        )
        for number in range(2)
    )
    return Curves(title, title, "", "randomized requests", "error", panels, **options)


RMSE = curves(
    "rmse",
    {
        **dict.fromkeys(FAMILIES, (0.5, 0.2, 0.1, 0.05, 0.03)),
        "ipw": (None, 0.3, None, 0.05, 0.0),
        NASTY: (0.4, 0.4, 0.4, 0.4, 0.4),
    },
    log_x=True,
    log_y=True,
)
BIAS = curves("bias", {"ipw": (0.0, 0.01, 0.0, -0.01, 0.0), "cvci": (-0.2, -0.2, 0, 0, 0)})
HEAT = Heatmaps(
    *("grid", NASTY, NASTY, "ω", "α", "the first is better", NASTY),
    (
        HeatPanel(
            NASTY,
            GRID,
            GRID,
            tuple(
                tuple(
                    Measured(None) if i == j == 2 else measured(0.02 * i - 0.05 * j, 0.015)
                    for j in range(5)
                )
                for i in range(5)
            ),
        ),
    ),
)
TABLE = Table(
    "values",
    NASTY,
    "Lower is better.",
    ("model", "regret", NASTY),
    ((NASTY, measured(0.1), NASTY), ("forest", measured(0.05), None)),
)


def found(*figures: Figure) -> Findings:
    return Findings("grid", NASTY, (NASTY, "Second."), (TABLE,), figures)


@pytest.fixture(scope="module")
def page() -> str:
    return findings_page(found(RMSE, BIAS, HEAT), META)


def drawn(page: str) -> dict[str, Any]:
    data = page.split('<script type="application/json" id="figures">')[1].split("</script>")[0]
    result: dict[str, Any] = json.loads(data)
    return result


def test_the_same_findings_write_the_same_bytes(page: str, tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", found(RMSE, BIAS, HEAT), META)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_everything_is_escaped_and_nothing_is_fetched(page: str) -> None:
    body = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert page.count("<script") - page.count('"<script') == 3 + page.split("plotly.js")[1].count(
        "<script"
    )
    assert "<b>bold" not in page
    assert "taken" in body
    assert body.count(html.escape(NASTY, quote=True)) > 10
    assert not re.search(r"<(link|img|iframe|base|object|embed)\b|\b(src|href)=", body)
    assert not re.search(r"\bonmouseover=(?!x)", body)
    assert "url(" not in page.split("<style>")[1].split("</style>")[0]
    for figure in drawn(page).values():
        assert "<b>bold" not in json.dumps(figure)


def test_the_policy_names_the_hashes_of_the_scripts(page: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    assert len(hashes) == 2
    assert "script-src " + " ".join(f"'sha256-{each}'" for each in hashes) + ";" in page


def test_heat_maps_alone_need_no_plotly() -> None:
    text = findings_page(found(HEAT), META)
    assert len(text) < 100_000
    assert "Plotly.js" not in text


def test_lines_keep_their_style_in_every_figure(page: str) -> None:
    styles: dict[str, set[tuple[str, str, str]]] = {}
    for figure in drawn(page).values():
        for trace in figure["data"]:
            if "marker" in trace:
                line = trace["line"]
                styles.setdefault(trace["name"], set()).add(
                    (line["color"], line["dash"], trace["marker"]["symbol"])
                )
    assert len(styles) == len(FAMILIES) + 1
    assert all(len(each) == 1 for each in styles.values())
    # Without colour they are told apart by dash and mark.
    assert len({(dash, mark) for ((_, dash, mark),) in styles.values()}) == len(styles)


def trace(page: str, figure: str, name: str, kind: str) -> dict[str, Any]:
    (only,) = (
        each for each in drawn(page)[figure]["data"] if each["name"] == name and kind in each
    )
    result: dict[str, Any] = only
    return result


def test_unknown_points_leave_gaps_and_lonely_ones_get_bars(page: str) -> None:
    line = trace(page, "fig-1", "ipw", "marker")
    assert [y is None for y in line["y"]] == [False, True, False, False]
    assert line["error_y"]["array"][0] == pytest.approx(0.01)
    assert not any(line["error_y"]["array"][1:])
    band = trace(page, "fig-1", "ipw", "fill")
    assert len(band["x"]) == 4, "the band covers the last two points alone"
    assert line["customdata"][0] == "0.300 [0.290, 0.310]"


def test_zero_stands_on_the_edge_of_logarithmic_axes(page: str) -> None:
    figure = drawn(page)["fig-1"]
    line = trace(page, "fig-1", "ipw", "marker")
    assert np.log10(line["y"][-1]) == pytest.approx(figure["layout"]["yaxis"]["range"][0], abs=1e-5)
    assert "A mean of 0 stands on the lower edge." in page
    assert figure["layout"]["xaxis"]["ticktext"] == ["0", "100", "300", "1,000", "3,000"]
    assert figure["layout"]["xaxis"]["tickvals"][0] == pytest.approx(2 - np.log10(3))


def test_panels_share_their_axes_and_are_valid(page: str) -> None:
    figures = drawn(page)
    assert len(figures) == 4
    for first, second in (("fig-1", "fig-2"), ("fig-3", "fig-4")):
        for axis in ("xaxis", "yaxis"):
            assert figures[first]["layout"][axis] == figures[second]["layout"][axis]
    low, high = figures["fig-3"]["layout"]["yaxis"]["range"]
    assert low < -0.21
    assert high > 0.02
    for figure in figures.values():
        text = re.sub(r'"@[\w-]+(/[\d.]+)?"', '"#123456"', json.dumps(figure))
        go.Figure(json.loads(text))


def test_a_heat_map_says_its_numbers_its_sureness_and_what_is_unknown(page: str) -> None:
    (cells,) = re.findall(r'<table class="map"[^>]*>(.*?)</table>', page)
    assert len(re.findall(r'class="number">', cells)) == 25
    assert len(re.findall(r'class="interval">\[', cells)) == 24
    assert cells.count('<td class="none"') == 1
    # Top left: the largest α, the smallest ω.
    first = re.search(r"<td class=\"(.*?)\" style=\"--share:(\d+)%\" title=\"(.*?)\">", cells)
    assert first is not None
    assert first[1].split() == ["above", "sure"]
    assert first[2] == "40"
    assert first[3].startswith("ω 0, α 1: +0.080 [0.065, 0.095]: ")
    strongest = re.findall(r'<td class="(\w+) sure" style="--share:100%"', cells)
    assert strongest == ["below"]
    assert "ω 0, α 0: 0.000 [−0.015, 0.015]" in cells
    assert "the interval includes 0" in cells
    assert "−0.200</b> the first is better" in page


def test_the_best_of_a_column_is_marked_once(page: str) -> None:
    (table,) = re.findall(r'<table class="found">(?:(?!</table>).)*forest.*?</table>', page, re.S)
    assert table.count('class="best"') == 1
    assert re.search(r'class="best"><span class="number">0\.050<', table)


PRESS = """<script>
  const root = document.documentElement.dataset;
  const traces = (kept) => [...document.querySelectorAll(".plot")]
    .map((place) => place.data.filter(kept).length).join();
  const key = document.querySelector('button.key[data-line="ipw"]');
  root.before = traces((trace) => !trace.visible);
  key.click();
  root.after = traces((trace) => !trace.visible);
  key.click();
  key.dispatchEvent(new MouseEvent("dblclick"));
  root.alone = traces((trace) => trace.marker && trace.visible);
  key.dispatchEvent(new MouseEvent("dblclick"));
  root.again = traces((trace) => !trace.visible);
</script></body>"""


def root_of(dom: str) -> str:
    found = re.search(r"<html[^>]*>", dom)
    assert found is not None
    return found[0]


def test_a_browser_draws_every_figure_in_the_dark(
    browse: Callable[..., tuple[str, str]], page: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    dom, console = browse(path, tmp_path / "profile", "--blink-settings=preferredColorScheme=0")
    assert console == ""
    assert 'data-drawn="4"' in root_of(dom)
    assert 'data-errors=""' in root_of(dom)
    assert "fill: rgb(232, 234, 238)" in dom, "the labels of figures follow the colour scheme"
    # plotly writes its labels as SVG text; a label that were markup would have become an element.
    assert "&lt;b&gt;bold" in re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)


def test_keys_hide_their_line_in_all_panels_of_their_figure(
    browse: Callable[..., tuple[str, str]], page: str, tmp_path: Path
) -> None:
    # The page allows no script but its own; the copy that presses a key has to do without.
    free = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page)
    path = tmp_path / "report.html"
    path.write_text(free.replace("</body>", PRESS), encoding="utf-8")
    dom, _ = browse(path, tmp_path / "profile")
    assert "fill: rgb(26, 29, 35)" in dom
    assert 'data-before="0,0,0,0"' in root_of(dom)
    # A line and its band, in both panels of its figure and in no other figure.
    assert 'data-after="2,2,0,0"' in root_of(dom)
    assert 'data-alone="1,1,2,2"' in root_of(dom)
    assert 'data-again="0,0,0,0"' in root_of(dom)
