"""The report: safe, offline, the same every time, and drawn by a real browser."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from equipoise.replay.findings.figures import log_axis, root_axis
from equipoise.replay.findings.page import Sheet
from equipoise.replay.findings.report import write_report
from equipoise.replay.results.summary import FAMILIES, summarize

Results = tuple[pd.DataFrame, dict[str, Any]]
COLOUR = re.compile(r"@([\w-]+)(/[\d.]+)?")
COLOUR_KEYS = re.compile(r"color$|colorscale")
CSS = files("equipoise.replay.findings").joinpath("page.css").read_text(encoding="utf-8")


def report(path: Path, made: Results) -> str:
    results, meta = made
    write_report(path, results, summarize(results, meta), meta)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, demo: Results) -> str:
    return report(tmp_path_factory.mktemp("report") / "report.html", demo)


class Elements(HTMLParser):
    """Collects what a page holds: (tag, attributes) in order, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)


def figures(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Elements(page).scripts[0])
    return found


def colours(value: Any, inside: bool = False) -> Iterator[str]:
    """Every colour a figure names, where a colour may stand."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from colours(each, bool(COLOUR_KEYS.search(key)))
    elif isinstance(value, list):
        for each in value:
            yield from colours(each, inside)
    elif inside and isinstance(value, str):
        yield value


def painted(value: Any) -> Any:
    """A figure with some colour wherever it names one, so that plotly can check the rest."""
    if isinstance(value, dict):
        return {key: painted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [painted(each) for each in value]
    return "#123456" if isinstance(value, str) and COLOUR.fullmatch(value) else value


def test_the_same_replay_gives_the_same_bytes(demo: Results, tmp_path: Path, page: str) -> None:
    assert report(tmp_path / "again.html", copy.deepcopy(demo)) == page


def test_results_read_back_from_parquet_give_the_same_report(
    demo: Results, tmp_path: Path, page: str
) -> None:
    demo[0].to_parquet(tmp_path / "results.parquet", index=False)
    again = pd.read_parquet(tmp_path / "results.parquet")
    assert report(tmp_path / "again.html", (again, demo[1])) == page


def test_the_page_says_the_headline_and_the_verdicts(page: str, demo: Results) -> None:
    text = " ".join(Elements(page).texts)
    assert summarize(*demo)["headline"] in text
    assert "The naive comparison of the usage log misleads" in text
    words = [text.count(word) for word in ("wrong", "right")]
    assert words[0] >= 6
    assert words[1] >= 18
    assert "$" not in text


def test_nothing_is_asked_of_the_network(page: str) -> None:
    for tag, attributes in Elements(page).found:
        assert tag not in {"link", "img", "iframe", "base", "object", "embed"}
        assert not {"src", "href", "srcset", "action"} & set(attributes), (tag, attributes)
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_just_the_scripts_of_the_page(page: str) -> None:
    parsed = Elements(page)
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in parsed.found
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    data, *scripts = parsed.scripts
    assert json.loads(data)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    assert len(hashes) == 2
    assert "script-src " + " ".join(f"'sha256-{each}'" for each in hashes) + ";" in policy


def test_figures_are_valid_and_each_has_its_place(page: str) -> None:
    found = figures(page)
    places = [a["id"] for _, a in Elements(page).found if a.get("class") == "plot"]
    assert places == [f"fig-{number}" for number in range(1, len(places) + 1)]
    assert set(places) == set(found)
    # Values 3, regret 3, errors 3, harm and spend, width and coverage.
    assert len(places) == 13
    for figure in found.values():
        assert figure["data"]
        go.Figure(painted(figure))


def test_every_colour_is_defined_for_light_and_dark(synthesize: Callable[..., Results]) -> None:
    light, _, dark = CSS.partition("@media screen and (prefers-color-scheme: dark)")
    names = [set(re.findall(r"--([\w-]+): #[0-9a-f]{6};", part)) for part in (light, dark)]
    assert names[0] == names[1]
    assert set(FAMILIES) <= names[0]


def test_figures_name_only_colours_of_the_style(page: str) -> None:
    defined = set(re.findall(r"--([\w-]+):", CSS))
    for figure in figures(page).values():
        for colour in colours(figure):
            match = COLOUR.fullmatch(colour)
            assert match, colour
            assert match[1] in defined


def test_lines_stand_out_from_the_paper_in_both_schemes() -> None:
    """At least 3:1, the contrast that WCAG 2 asks of graphics."""
    light, _, dark = CSS.partition("@media screen and (prefers-color-scheme: dark)")
    for part in (light, dark):
        shades = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part))
        paper = luminance(shades["paper"])
        lines = [name for name in shades if name in FAMILIES or name.startswith("other-")]
        assert len(lines) == 12
        for name in lines:
            line = luminance(shades[name])
            contrast = (max(paper, line) + 0.05) / (min(paper, line) + 0.05)
            assert contrast >= 3, (name, contrast)


def test_numbers_can_be_read_on_the_strongest_colours_of_maps() -> None:
    """At least 4.5:1, the contrast that WCAG 2 asks of text."""
    light, _, dark = CSS.partition("@media screen and (prefers-color-scheme: dark)")
    for part in (light, dark):
        shades = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part))
        for name in ("above", "below", "paper"):
            pair = sorted((luminance(shades["ink"]), luminance(shades[name])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, name


def luminance(shade: str) -> float:
    """Relative luminance of #rrggbb as WCAG 2 defines it."""
    channels = np.array([int(shade[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    steep = ((channels + 0.055) / 1.055) ** 2.4
    return float(np.where(channels <= 0.04045, channels / 12.92, steep) @ [0.2126, 0.7152, 0.0722])


NASTY = (
    "<script>document.title='taken'</script>",
    "a\"b' onmouseover=x",
    "</script><b>bold</b> $style ${x} %{y} & &lt;",
)


def test_text_from_files_is_escaped(synthesize: Callable[..., Results], tmp_path: Path) -> None:
    results, meta = synthesize(models=NASTY, policies=[NASTY[0]], estimators=[NASTY[2], "ipw"])
    meta = {**meta, "title": NASTY[2], "source": NASTY[0], "exclusions": {NASTY[0]: 3}}
    text = report(tmp_path / "report.html", (results, meta))
    parsed = Elements(text)
    # The page's own elements and no other: three scripts, the keys' <i>, the glossary's <b>.
    assert [tag for tag, _ in parsed.found].count("script") == 3
    assert not any("onmouseover" in attributes for _, attributes in parsed.found)
    assert NASTY[0] in " ".join(parsed.texts)
    assert "<b>bold</b>" not in text
    for figure in figures(text).values():
        shown = json.dumps(figure)
        assert "<script" not in shown
        assert "<b>bold" not in shown
    templates = [
        trace["hovertemplate"]
        for figure in figures(text).values()
        for trace in figure["data"]
        if "hovertemplate" in trace
    ]
    assert all(re.fullmatch(r"%\{customdata\}(<extra></extra>)?", each) for each in templates)


def test_figures_cannot_end_their_script_element() -> None:
    sheet = Sheet({})
    figure = {"data": ["</script><!-- & \u2028"], "layout": {"height": 1}}
    sheet.place(figure, "heading", "description")
    assert not set("<>&\u2028") & set(sheet.as_json())
    assert json.loads(sheet.as_json()) == {"fig-1": figure}


def test_a_single_run_without_estimates_has_a_report(
    synthesize: Callable[..., Results], tmp_path: Path
) -> None:
    text = report(tmp_path / "report.html", synthesize(seeds=1, with_values=False))
    assert "endless usage log" in text
    found = figures(text)
    assert len(found) == 11
    bands = [trace for each in found.values() for trace in each["data"] if "fill" in trace]
    assert not bands


def test_unknown_numbers_leave_gaps_and_not_zeros(demo: Results, tmp_path: Path) -> None:
    results, meta = demo
    blank = results.assign(rmse_contrast=np.nan, width=np.inf, spend=np.nan, harm=np.nan)
    text = report(tmp_path / "report.html", (blank, meta))
    lines = [trace for trace in figures(text)["fig-7"]["data"] if trace["name"]]
    assert all(trace["x"] == trace["y"] == [] for trace in lines)
    assert 'title="unknown"' in text
    # No cost is known, so there is nothing to draw against it.
    assert len(figures(text)) == 11


def test_several_settings_get_maps_and_folds(
    synthesize: Callable[..., Results], tmp_path: Path
) -> None:
    made = synthesize(alphas=[0.0, 1.0], confoundings=[0.0, 1.0], policies=["uniform"])
    text = report(tmp_path / "report.html", made)
    maps = re.findall(r'<table class="map"[^>]*>.*?</table>', text)
    assert len(maps) == 8
    cells = [re.findall(r'class="number">([^<]*)<', each) for each in maps]
    # The log alone, alignment downwards and confounding to the right.
    assert cells[0] == ["0.000", "0.141", "0.000", "0.141"]
    shares = re.findall(r"--share:(\d+)%", maps[0])
    assert shares == ["0", "100", "0", "100"], "all maps share the scale of the worst regret"
    assert maps[0].count('class="interval">[') == 0, "runs that all agree have no interval"
    assert all(each.count('class="interval">[') <= 4 for each in maps)
    assert any('class="interval">[' in each for each in maps)
    folds = [a for tag, a in Elements(text).found if tag == "details" and a.get("class")]
    assert ["open" in each for each in folds] == [True, False, False, False]


def test_tables_say_what_a_baseline_serves(
    synthesize: Callable[..., Results], tmp_path: Path, page: str
) -> None:
    """river's Thompson sampling is not the textbook's, and the table names both."""
    policies = ["uniform", "contrast+river-thompson", "textbook-thompson"]
    made = synthesize(policies=policies)
    text = report(tmp_path / "report.html", made)
    said = html.unescape(text.split("Baselines: ")[1].split("</")[0])
    assert "contrast+river-thompson is what river" in said
    assert "never settles" in said
    assert "textbook-thompson is Thompson sampling on sample means" in said
    assert "uniform is" not in said
    assert "Baselines" not in page


def test_every_number_of_the_table_has_its_interval(page: str) -> None:
    table = page.split("<h2>Every number</h2>")[1].split("</table>")[0]
    lines = table.split("<tr>")[2:]
    assert len(lines) == 24
    for line in lines:
        assert line.count('class="number"') >= 10
        bare = re.findall(r'class="number">([^<]*)</span>(?! <span class="interval">\[)', line)
        # Only where all runs agree: regrets of the same wrong model, and what is randomized.
        assert set(bare) <= {"0.141", "0.000", "1,003"}


def test_many_models_are_cut_to_those_that_matter(
    synthesize: Callable[..., Results], tmp_path: Path
) -> None:
    results, meta = synthesize(policies=["uniform"])
    results = results.drop(columns="values")
    extra = {f"spare-{number}": 0.1 + number / 1000 for number in range(30)}
    (scenario,) = meta["scenarios"]
    grown = {
        **scenario,
        "values": {**scenario["values"], **extra},
        "naive_limit": {**scenario["naive_limit"], **extra},
    }
    meta = {**meta, "models": [*meta["models"], *extra], "scenarios": [grown]}
    text = report(tmp_path / "report.html", (results, meta))
    assert len(figures(text)["fig-1"]["layout"]["yaxis"]["ticktext"]) == 12
    assert "Shown are 12 of 36 models" in text


@pytest.mark.parametrize("most", [1.0, 7.0, 1000.0, 16_000.0, 0.141, 0.003])
def test_ticks_of_a_square_root_axis_lie_on_it(most: float) -> None:
    axis = root_axis("x", most)
    values = [float(text.replace(",", "")) for text in axis["ticktext"]]
    assert values[0] == 0
    assert 3 <= len(values) <= 7
    assert np.allclose(np.square(axis["tickvals"]), values)
    assert max(axis["tickvals"]) <= axis["range"][1]


def test_ticks_of_a_logarithmic_axis_lie_on_it() -> None:
    assert log_axis("x", 0.015, 0.4)["ticktext"] == ["0.02", "0.05", "0.1", "0.2"]
    assert log_axis("x", 0.0001, 20)["ticktext"] == ["0.0001", "0.001", "0.01", "0.1", "1", "10"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_every_visible_figure(
    browse: Callable[..., tuple[str, str]],
    synthesize: Callable[..., Results],
    tmp_path: Path,
    scheme: str,
) -> None:
    made = synthesize(models=[*NASTY, "forest"], policies=["uniform", "top-two"])
    path = tmp_path / "report.html"
    report(path, made)
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    dom, console = browse(path, tmp_path / "profile", *dark)
    assert console == ""
    root = re.search(r"<html[^>]*>", dom)
    assert root is not None
    # Ten figures, of which the values under the second policy are folded away.
    assert 'data-drawn="9"' in root[0]
    assert 'data-errors=""' in root[0]
    svgs = dom.count('class="main-svg"')
    assert svgs >= 9
    assert "document.title" not in re.findall(r"<title>(.*?)</title>", dom)[0]
    ink = {"light": "rgb(26, 29, 35)", "dark": "rgb(232, 234, 238)"}[scheme]
    assert f"fill: {ink}" in dom, "the labels of figures follow the colour scheme"
    # plotly writes its labels as SVG text; a label that were markup would have become an element.
    drawn = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert "&lt;script&gt;document.title" in drawn
