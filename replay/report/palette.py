"""Colours, dashes and marks. Colours are names of CSS variables, so that one place has them all.

A colour in a figure is "@name" or "@name/opacity"; report.js looks it up in report.css when it
draws, for the light and the dark scheme and for print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.replay.summary import FAMILIES

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "hexagon")
OTHERS = 4
"""Colours for estimators that are not one of FAMILIES."""
POLICIES = 6
"""Colours for policies; a seventh begins again with another dash."""


@dataclass(frozen=True, slots=True)
class Style:
    """How an estimator or a policy is drawn, everywhere the same."""

    name: str
    colour: str
    dash: str
    symbol: str


FAMILY_DASHES = {
    "naive-log": "dot",
    "ipw": "solid",
    "obs-only": "dash",
    "representation-exp": "solid",
    "cvci": "longdash",
    "grounded": "dashdot",
    "doubly-robust": "solid",
    "hierarchical": "solid",
}
FAMILY_SYMBOLS = {
    "naive-log": "x",
    "ipw": "square",
    "obs-only": "diamond",
    "representation-exp": "triangle-up",
    "cvci": "triangle-down",
    "grounded": "hexagon",
    "doubly-robust": "star",
    "hierarchical": "circle",
}


def estimator_style(name: str, known: Sequence[str]) -> Style:
    """Style of an estimator; `known` are all estimators of the report, in order."""
    if name in FAMILIES:
        return Style(name, name, FAMILY_DASHES[name], FAMILY_SYMBOLS[name])
    others = [each for each in known if each not in FAMILIES]
    index = others.index(name)
    # One dash further than the mark: no family looks like that without its colour.
    dash, symbol = DASHES[(index + 1) % len(DASHES)], SYMBOLS[index % len(SYMBOLS)]
    return Style(name, f"other-{index % OTHERS}", dash, symbol)


def policy_style(name: str, known: Sequence[str]) -> Style:
    """Style of a policy; `known` are all policies of the report, in order."""
    index = list(known).index(name)
    dash = DASHES[(index // POLICIES + index) % len(DASHES)]
    return Style(name, f"policy-{index % POLICIES}", dash, SYMBOLS[index % len(SYMBOLS)])
