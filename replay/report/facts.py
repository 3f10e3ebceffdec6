"""What was run, as a list of definitions; from the description that a run leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from equipoise.replay.report.tables import text

SAID = {"obs", "requests", "exp_rate", "budget", "seeds"}
"""Options that have a sentence of their own."""
NAMES = {"delta": "Error rate δ", "epsilon": "Tolerance ε"}


def facts(
    meta: Mapping[str, Any], policies: Sequence[str] = (), estimators: Sequence[str] = ()
) -> str:
    """Definitions as HTML of all that `meta` knows; what it does not know is left out."""
    options: Mapping[str, Any] = meta.get("options", {})
    scenarios = meta.get("scenarios", ())
    found = {
        "Benchmark": _benchmark(meta),
        "Source": meta.get("source", ""),
        "Models": ", ".join(meta.get("models", ())),
        "Contexts": _counted(meta.get("contexts"), ""),
        "Left out": ", ".join(f"{why}: {n}" for why, n in meta.get("exclusions", {}).items()),
        "Usage log": _counted(options.get("obs"), " requests, served as routed, before the start"),
        "Live requests": _counted(options.get("requests"), " a run", "up to "),
        "Randomized": _randomized(options),
        "Runs": _counted(options.get("seeds"), " for every setting, policy and estimator"),
        "Policies": ", ".join(policies),
        "Estimators": ", ".join(estimators),
        "Alignment α": _listed(each["alpha"] for each in scenarios),
        "Confounding ω": _listed(each["confounding"] for each in scenarios),
        **_others(options),
    }
    return "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(fact)}</dd></div>"
        for name, fact in found.items()
        if fact
    )


def _benchmark(meta: Mapping[str, Any]) -> str:
    title, name = meta.get("title"), meta.get("benchmark")
    return f"{title} ({name})" if title and name else str(title or name or "")


def _counted(value: Any, after: str, before: str = "") -> str:
    """A count with its words; nothing where there is no single count."""
    if isinstance(value, (list, tuple)):
        return before + ", ".join(f"{each:,}" for each in value) + after if value else ""
    return "" if value is None else f"{before}{value:,}{after}"


def _randomized(options: Mapping[str, Any]) -> str:
    rate, budget = options.get("exp_rate"), options.get("budget")
    parts = [] if rate is None else [f"{100 * rate:.3g}% of the live requests"]
    whose = "requests" if rate is None else "of them"
    parts += [] if budget is None else [f"{_counted(budget, '')} {whose} at most"]
    return ", ".join(parts)


def _others(options: Mapping[str, Any]) -> dict[str, str]:
    """Options without a sentence of their own, by name, where they say something."""
    found = {}
    for name, value in options.items():
        if name in SAID or value is None or value in ([], (), {}, ""):
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
        found[NAMES.get(name, name.replace("_", " ").capitalize())] = shown
    return found


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{each:g}" for each in dict.fromkeys(numbers))
