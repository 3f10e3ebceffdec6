"""The widths of the sequences, as a part of the study's page."""

from __future__ import annotations

from markdown_text import table
from widths import TIMES


def lines_of(results):
    lines = ["## Widths", ""]
    cell = results.get("width/asymptotic")
    if cell:
        lines += [
            "Asymptotic sequence over the fixed-n z interval at the same level, by the number of "
            "rows over the number it is tuned for. Computed from the formulas.",
            "",
        ]
        rows = [[name, *(f"{r:.3f}" for r in ratios)] for name, ratios in cell["ratios"].items()]
        lines += table(["level and reward scale", *(f"{t:g}×" for t in TIMES)], rows)
    cell = results.get("width/per-model")
    if cell:
        lines += [
            "",
            "Per-model sequence over Welch's fixed-n t interval at the same level, once every "
            "model has 200 rewards (*leader 0.2*: three of four models get 5% of the draws each).",
            "",
        ]
        rows = [[name, f"{mean:.2f}", f"{high:.2f}"] for name, (mean, high) in cell.items()]
        lines += table(["success rate, allocation", "mean ratio", "95% quantile"], rows)
    cell = results.get("width/bounded")
    if cell:
        lines += [
            "",
            "Bounded sequence: half-width of the contrast of the best with another model after "
            "4,000 randomized requests, over the z interval of the scores; rows are success "
            "rates, columns the share of the draws that the model gets. A small share costs "
            "twice: the z interval itself grows like the root of the weight 1 / (e pi), and the "
            "bounded sequence has to allow for outcomes of that weight that were not seen.",
            "",
        ]
        values, floors = (list(dict.fromkeys(k.split()[i] for k in cell)) for i in (0, 1))
        rows = [
            [v, *(f"{cell[f'{v} {f}'][0]:.2f} (±{cell[f'{v} {f}'][1]:.3f})" for f in floors)]
            for v in values
        ]
        lines += table(["success rate", *(f"{float(f) / 4:.3f}" for f in floors)], rows)
    cell = results.get("width/scale")
    if cell:
        worst = max(cell.values())
        lines += [
            "",
            "Rewards and their declared range multiplied by 1e-4 or 1e4: every bound is the same "
            f"in units of the scale, to {worst:.0e}, on ten runs. All cells above therefore hold "
            "at those scales.",
        ]
    return lines
