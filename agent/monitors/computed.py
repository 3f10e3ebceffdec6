"""Estimators: could every family be computed, and from all of the log?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from equipoise.agent.estimators.base import Estimate
from equipoise.agent.estimators.outliers import LeftOut
from equipoise.agent.monitors.check import Check, listed


def computed(
    estimates: Mapping[str, Estimate],
    configured: str,
    left: Sequence[LeftOut],
    features: Sequence[str],
    plain: str,
) -> Check:
    """An alarm where a family cannot be computed, worth a look where rows were left out.

    estimates: by family; configured: the family that recommends; left: what was left out of the
    sums; features: (p - 1,) names; plain: the family that recommends where `configured` fails.
    """
    failed = {
        name: str(found.diagnostics["failed"])
        for name, found in estimates.items()
        if "failed" in found.diagnostics
    }
    figures = {
        "failed": failed,
        "left_out": {each.source: each.groups / each.present for each in left},
    }
    told = "; ".join(each.sentence(features) for each in left)
    if failed:
        reasons = dict.fromkeys(failed.values())
        sentence = "; ".join(
            f"{listed([name for name in failed if failed[name] == reason])} cannot be computed: "
            f"{reason}"
            for reason in reasons
        )
        sentence = f"{sentence}."
        if configured in failed and configured != plain:
            sentence += f" {plain} recommends meanwhile."
        if told:
            sentence += f" {_whole(told)}."
        return Check("estimators", "alarm", sentence, figures)
    if told:
        sentence = f"{_whole(told)}: every family but {plain} goes without them."
        return Check("estimators", "watch", sentence, figures)
    return Check("estimators", "ok", "Every family can be computed, from all of the log.", figures)


def _whole(text: str) -> str:
    return text[:1].upper() + text[1:]
