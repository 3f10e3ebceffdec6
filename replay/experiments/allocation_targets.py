"""What the allocation must show on each benchmark, and whether it does."""

from __future__ import annotations

import numpy as np

from equipoise.replay.averages import TAILS, area_under, resampled_means
from equipoise.replay.experiments.allocation_needed import saving
from equipoise.replay.experiments.arms import Arm, ArmStreams
from equipoise.replay.experiments.findings import Entry, Table

LIMIT = 0.01
"""Mean regret, reward units, at which randomized requests are counted."""
SAVINGS: dict[str, tuple[float, bool]] = {"swebench": (10.0, True), "alpacaeval": (1.5, False)}
"""By benchmark: how many times fewer requests than an A/B test, and whether than gateways too."""
AREA = 1.1
"""Elsewhere: the area under the regret curve over the smallest of the three."""


def target_table(
    streams: ArmStreams, benchmark: str, ab_test: Arm, gateway: Arm, ours: Arm
) -> tuple[Table, str]:
    """A row per setting and target, and a sentence that counts them."""
    times, both = SAVINGS.get(benchmark, (1.0, False))
    others = ([ab_test, gateway] if both else [ab_test]) if benchmark in SAVINGS else []
    rows: list[tuple[Entry, ...]] = []
    met = []
    for setting in streams.settings:
        for other in others:
            found, low, high = saving(streams, setting, ours, other, LIMIT)
            met.append(found >= times)
            rows.append(
                (
                    str(setting),
                    f"{times:g} times fewer than {other.label} at {LIMIT:g}",
                    f"{found:.1f} [{low:.1f}, {high:.1f}]",
                    "yes" if met[-1] else "NO",
                )
            )
        grid = streams.checkpoints
        curves = {
            arm.label: streams.curves(setting, arm.label, "regret")
            for arm in (ab_test, gateway, ours)
        }
        areas = {
            name: area_under(each.mean(axis=0)[None], grid)[0] for name, each in curves.items()
        }
        drawn = {name: area_under(resampled_means(each), grid) for name, each in curves.items()}
        least = np.minimum.reduce(list(drawn.values()))
        # A regret of 0 throughout is the best there is, however many others have it too.
        ratio = (areas[ours.label] + 1e-12) / (min(areas.values()) + 1e-12)
        low, high = np.quantile((drawn[ours.label] + 1e-12) / (least + 1e-12), TAILS)
        met.append(bool(ratio <= AREA))
        rows.append(
            (
                str(setting),
                f"area at most {AREA:g} of the best of the three",
                f"{ratio:.2f} [{low:.2f}, {high:.2f}]",
                "yes" if met[-1] else "NO",
            )
        )
    sentence = (
        f"{ours.label} meets {sum(met)} of {len(met)} targets on {benchmark} against an A/B test"
        f" ({ab_test.label}) and what gateways ship ({gateway.label})."
    )
    return (
        Table(
            "targets",
            "The targets",
            "Ratios with paired 95% bootstrap intervals. A saving counts checkpoints, from the"
            f" first one after 0; who never gets there counts with {streams.checkpoints[-1]:,}.",
            ("setting", "target", "measured", "met"),
            tuple(rows),
        ),
        sentence,
    )
