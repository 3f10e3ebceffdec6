"""What a page carries inside: style, scripts, figures, and the policy that allows no more."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files


def part(name: str) -> str:
    """A file of this package: template, style or script."""
    return files("equipoise.replay.report").joinpath(name).read_text(encoding="utf-8")


def embedded(figures: str, plotting: bool = True) -> dict[str, str]:
    """What templates call style, figures, plotly, script, and allowed: the scripts that may run.

    figures: JSON that may stand inside a script element. plotting: whether any needs plotly,
    which is most of a page's size.
    """
    from plotly.offline import get_plotlyjs

    plotly, script = get_plotlyjs() if plotting else "", part("report.js")
    return {
        "style": part("report.css"),
        "figures": figures,
        "plotly": plotly,
        "script": script,
        "allowed": " ".join(_digest(each) for each in (plotly, script)),
    }


def _digest(script: str) -> str:
    """A script's hash as a content policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
