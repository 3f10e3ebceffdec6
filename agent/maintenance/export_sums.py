"""What surrounds the log, as tables: what each rule froze, eras, settings, alerts; and what every
column of an export holds (`MEANINGS`), which is where tables take their columns from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.errors import AgentError
from equipoise.agent.features import Transform
from equipoise.agent.inference import levels
from equipoise.agent.inference.mixture import LAMBDAS, LARGEST_BET, LAST_SHARE, SPREAD
from equipoise.agent.inference.rated import LONE
from equipoise.agent.inference.score import Tuning
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.lifecycle.eras import read_answers
from equipoise.agent.lifecycle.rules import Rule
from equipoise.store.contract import Store
from equipoise.store.records import lost_before

_REQUEST = {
    "seq": "number of the row in the log; rows of all kinds share one order",
    "request_id": "id of the request, empty where it had none",
    "unit": "key of the user or session",
    "unit_id": "id behind it, empty where it had none",
    "at": "seconds since the epoch",
    "x_*": "context features, a column each",
    "routed": "model that the router had chosen",
}
_OUTPUTS = {"y_*": "output features, a column each; empty where this row carries none"}
_RULE = {"rule_id": "the rule that froze it", "segment": "part of the traffic, empty for all of it"}

MEANINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "decisions": {
            **_REQUEST,
            "decision_id": "d and its number, counted from 0",
            "context": "key of the cached context, -1 where there is none",
            "context_id": "id behind it, empty where it had none",
            "eligible_*": "whether a model might serve the request, empty where every one might",
            "rate": "e, the probability of being randomized",
            "p_*": "pi, the probability of each model given that it is randomized",
            "uniform": "u, the one number drawn: u < e randomizes, u / e picks the model",
            "model": "model to serve",
            "randomized": "whether it came from the draw",
            "capped": "whether a stop set e to 0 after the rule had spoken",
            "closed_by": "what closed the request to randomizing: open, observing, paused, budget, "
            "segment, user, excluded, ineligible, decided, slice; late and repeated leave a draw "
            "out of all sums, again counts without a reward; empty in older logs",
            "rule_id": "the rule it was made under",
            "era": "the era of that rule",
            "lane_id": "name that a decider gave it: lane and number there; empty without deciders",
            "leader_id": "decision whose draw this one took over, its own where it drew itself",
            "raw_*": "reward of each model that its rule predicted, on [0, 1], before the tuning",
            "drawn_by": "by whom, where it was drawn elsewhere with the probabilities declared",
            "certifiable": "whether certified sums may count it, known before the draw",
            "entered": "whether those of the era in force have counted it",
        },
        "outcomes": {
            "seq": _REQUEST["seq"],
            "decision_id": "the decision it belongs to",
            "served": "model that really answered",
            "attempt": "1 for the first try",
            "delivered": "whether the assignment was delivered",
            **_OUTPUTS,
            "reward": "in reward units, empty where this part carries none",
            "at": _REQUEST["at"],
            "metric_*": "guardrail metrics, empty where this part carries none",
            "attempts": "every attempt in its order, a JSON list of model, status, seconds and "
            "cost (USD), empty where the part does not list them",
        },
        "observations": {**_REQUEST, **_OUTPUTS, "reward": "in reward units"},
        "simulations": {
            "seq": _REQUEST["seq"],
            "context": "key of the cached context",
            "context_id": "id behind it",
            "model": "model it was replayed on",
            "x_*": _REQUEST["x_*"],
            **_OUTPUTS,
            "cost": "USD, empty where it is not known",
            "at": _REQUEST["at"],
        },
        "expiries": {
            "seq": _REQUEST["seq"],
            "decision_id": "decision whose window closed: a reward that comes later is not used",
            "at": _REQUEST["at"],
        },
        "rules": {
            "rule_id": "hash of its text",
            "era": "era it decides in",
            "since": "number of the first decision it may make",
            "at": "when it was stored, seconds since the epoch",
            "gate": "policy that gives e",
            "assignment": "policy that gives pi",
            "floor": "least pi of an eligible model",
            "alarms": "checks whose alarm stood",
            "widened": "whether missing rewards count as the worst case, whatever is declared",
            "active_*": "whether its era compares a model",
            "body": "its whole text, JSON",
        },
        "predictions": {
            "rule_id": _RULE["rule_id"],
            "kind": "replayed: for a context with a replay that was known; context: for any other",
            "model": "the model, empty for what all share",
            "column": "intercept, or the feature it multiplies",
            "coefficient": "on rewards scaled to [0, 1]",
        },
        "tuning": {
            **_RULE,
            "candidate": "model, or today's routing",
            "offset": "mu = clip(offset + factor * raw, 0, 1)",
            "factor": "see offset",
            "usual": "raw prediction to assume where there is none",
        },
        "centres": {
            **_RULE,
            "cap": "position in caps of experiment.json",
            "candidate": "model, today's routing, or declared policy",
            "low": "what low scores were expected to be; squares are taken around it",
            "high": "the same of high scores",
        },
        "rated_tuning": {
            **_RULE,
            "candidate": "model, or today's routing",
            "offset": "a = min(b, clip(offset + factor * raw, 0, 1)), b by the table tuning; only "
            "where reward.missing is rated or asked",
            "factor": "see offset",
            "usual": "raw prediction to assume where there is none",
        },
        "rated_centres": {
            **_RULE,
            "cap": "position in caps of experiment.json",
            "candidate": "model, today's routing, or declared policy",
            "low_fixed": "what low scores were expected to be at theta = 0",
            "low_free": "and by how much more at theta = 1",
            "high_fixed": "the same of high scores",
            "high_free": "see high_fixed",
        },
        "reward_centres": {
            **_RULE,
            "model": "model",
            "low": "what rewards were expected to be, for lower ends, on [0, 1]",
            "high": "the same for upper ends",
            "seen": "rewards of the model until then",
        },
        "openings": {
            **_RULE,
            "end": "low or high end of a value, or contrast",
            "candidate": "whose value, or the one whose contrast",
            "other": "with whom, empty for a value",
            "rho": "of the asymptotic sequence, frozen when it opened",
        },
        "eras": {
            "era": "number, from 0",
            "opened_at": _REQUEST["at"],
            "reason": "why it was opened",
            "models": "model list, JSON",
            "active": "models it compares, JSON, empty for all",
            "renewed": "models that became another version with it, from which date, log row and "
            "decision on, JSON; empty for none",
            "answer": "what was certified when it ended, JSON; empty in the last, and where it was "
            "not kept",
            "key_hash": "hash of the key of its draws",
            "schema_hash": "hash of the feature schema",
        },
        "configurations": {
            "version": "0 for the first, the last is in force",
            "config": "the experiment as declared, JSON",
        },
        "controls": {
            "at": _REQUEST["at"],
            "name": "what was set: budget, stops (from which decision on what stopped), or the "
            "answer of an era that ended",
            "value": "JSON",
        },
        "alerts": {
            "at": _REQUEST["at"],
            "check": "name of the check, or pause",
            "status": "its verdict",
            "sentence": "for people",
        },
        "losses": {
            "at": "when it was found, seconds since the epoch",
            "row": "the first row of the log behind what is missing",
            "rows": "how many log rows are missing, as far as is known",
            "first": "the first decision number that no decision has, empty where none is lost",
            "numbers": "how many numbers from there on no decision has",
            "reason": "what happened",
            "kept": "files that were put aside",
        },
        "columns": {
            "table": "name of a table",
            "column": "name of a column; * stands for a name of yours",
            "meaning": "what it holds",
        },
    }
)
"""By table and column."""


_Table = tuple[str, pa.Schema, Iterator[pa.RecordBatch]]
_AT_ONCE = 100
_TYPES = {
    **dict.fromkeys(("at", "opened_at", "floor", "coefficient", "offset", "factor"), pa.float64()),
    **dict.fromkeys(("low_fixed", "low_free", "high_fixed", "high_free"), pa.float64()),
    **dict.fromkeys(("usual", "low", "high", "seen", "rho"), pa.float64()),
    **dict.fromkeys(("era", "since", "cap", "version"), pa.int64()),
    **dict.fromkeys(("row", "rows", "first", "numbers"), pa.int64()),
    "widened": pa.bool_(),
}
"""Of columns that are not text."""


def reader(store: Store, config: ExperimentConfig) -> Agent | None:
    """An agent that reads the store, None where no rule was ever frozen in it."""
    if not store.rules():
        return None
    try:
        return Agent(config, store, None)
    except AgentError:  # the state that the log begins with is of another version
        return None


def frozen_tables(store: Store, config: ExperimentConfig) -> Iterator[_Table]:
    """(name, columns, rows) of what surrounds the log, and of what each rule froze."""
    models = config.model_names
    transform = Transform(config.features)
    parts = ["", *(segment.name for segment in config.certify.segments)]
    rows = {
        "rules": partial(_rule_row, models=models, records=_records(store)),
        "predictions": partial(_predictions, models=models, transform=transform),
        "tuning": partial(_tuning, config=config, parts=parts),
        "centres": partial(_centres, config=config, parts=parts),
        "rated_tuning": partial(_rated_tuning, config=config, parts=parts),
        "rated_centres": partial(_rated_centres, config=config, parts=parts),
        "reward_centres": partial(_reward_centres, models=models, parts=parts),
        "openings": partial(_openings, config=config, parts=parts),
    }
    for name, row_of in rows.items():
        schema = _schema(name, models)
        yield name, schema, _stream(store, schema, row_of)
    yield from _around(store)


def _schema(name: str, models: Sequence[str] = ()) -> pa.Schema:
    """The columns of a table, in the order of MEANINGS."""
    columns: list[tuple[str, pa.DataType]] = []
    for column in MEANINGS[name]:
        if column == "active_*":
            columns += [(f"active_{model}", pa.bool_()) for model in models]
        else:
            columns.append((column, _TYPES.get(column, pa.string())))
    return pa.schema(columns)


def _records(store: Store) -> dict[str, Any]:
    return {record.rule_id: record for record in store.rules()}


def _stream(store: Store, schema: pa.Schema, row_of: Any) -> Iterator[pa.RecordBatch]:
    records = store.rules()
    for start in range(0, len(records), _AT_ONCE):
        rules = map(Rule.decode, records[start : start + _AT_ONCE])
        yield _batch(schema, [row for rule in rules for row in row_of(rule)])


def _batch(schema: pa.Schema, rows: Iterable[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [
        pa.array(column, field.type, from_pandas=True)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _rule_row(
    rule: Rule, models: tuple[str, ...], records: dict[str, Any]
) -> Iterator[tuple[Any, ...]]:
    allocation, record = rule.allocation, records[rule.rule_id]
    active = [*rule.active.tolist(), *([False] * (len(models) - len(rule.active)))]
    yield (
        rule.rule_id,
        rule.era,
        rule.since,
        record.at,
        allocation.gate_name,
        allocation.assignment_name,
        allocation.floor,
        ", ".join(rule.alarms),
        rule.widened,
        *active,
        record.body,
    )


def _predictions(
    rule: Rule, models: tuple[str, ...], transform: Transform
) -> Iterator[tuple[Any, ...]]:
    prediction = rule.prediction
    if prediction is None:
        return
    names = ["intercept", *transform.phi_names]
    for name, value in zip(names, prediction.theta.tolist(), strict=True):
        yield rule.rule_id, "replayed", None, name, value
    for model, effect, direct in zip(
        models, prediction.effects.tolist(), prediction.direct.tolist(), strict=False
    ):
        yield rule.rule_id, "replayed", model, "intercept", effect
        for name, value in zip(["intercept", *transform.context_names], direct, strict=True):
            yield rule.rule_id, "context", model, name, value


def _tuning(rule: Rule, config: ExperimentConfig, parts: list[str]) -> Iterator[tuple[Any, ...]]:
    for part, frozen in zip(parts, rule.frozen, strict=False):
        for row in _fitted(frozen.tuning, _of_rule(config, rule)):
            yield rule.rule_id, part, *row


def _rated_tuning(
    rule: Rule, config: ExperimentConfig, parts: list[str]
) -> Iterator[tuple[Any, ...]]:
    for part, frozen in zip(parts, rule.frozen, strict=False):
        if frozen.rated is not None:
            for row in _fitted(frozen.rated.tuning, _of_rule(config, rule)):
                yield rule.rule_id, part, *row


def _fitted(tuning: Tuning, names: list[str]) -> Iterator[tuple[Any, ...]]:
    usual = np.full(len(tuning.offset), 0.5) if tuning.usual is None else tuning.usual
    own = names[: len(tuning.offset)]
    yield from zip(own, tuning.offset, tuning.factor, usual, strict=True)


def _rated_centres(
    rule: Rule, config: ExperimentConfig, parts: list[str]
) -> Iterator[tuple[Any, ...]]:
    for part, frozen in zip(parts, rule.frozen, strict=False):
        if frozen.rated is None:
            continue
        columns = np.stack([*frozen.rated.low, *frozen.rated.high], axis=-1)
        for cap, rows in enumerate(columns.tolist()):
            for name, row in zip(_of_rule(config, rule), rows, strict=False):
                yield rule.rule_id, part, cap, name, *row


def _centres(rule: Rule, config: ExperimentConfig, parts: list[str]) -> Iterator[tuple[Any, ...]]:
    for part, frozen in zip(parts, rule.frozen, strict=False):
        low, high = frozen.centres.low, frozen.centres.high
        for cap, (lows, highs) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            for name, *values in zip(_of_rule(config, rule), lows, highs, strict=False):
                yield rule.rule_id, part, cap, name, *values


def _reward_centres(
    rule: Rule, models: tuple[str, ...], parts: list[str]
) -> Iterator[tuple[Any, ...]]:
    for part, frozen in zip(parts, rule.frozen, strict=False):
        rewards = frozen.rewards
        seen = np.full(len(rewards.low), np.nan) if frozen.seen is None else frozen.seen
        for name, *values in zip(models, rewards.low, rewards.high, seen, strict=False):
            yield rule.rule_id, part, name, *values


def _openings(rule: Rule, config: ExperimentConfig, parts: list[str]) -> Iterator[tuple[Any, ...]]:
    names = _of_rule(config, rule)
    for part, frozen in zip(parts, rule.frozen, strict=False):
        opening = frozen.opening
        if opening is None:
            continue
        for end, values in (("low", opening.low), ("high", opening.high)):
            for name, value in zip(names, values.tolist(), strict=False):
                yield rule.rule_id, part, end, name, None, value
        for name, row in zip(names, opening.contrast.tolist(), strict=False):
            for other, value in zip(names, row, strict=False):
                if name != other:
                    yield rule.rule_id, part, "contrast", name, other, value


def _of_rule(config: ExperimentConfig, rule: Rule) -> list[str]:
    """Names of the candidates a rule knew: models that came later are not among them."""
    active, models = len(rule.active), len(config.models)
    return [*config.candidates[:active], *config.candidates[models:]]


def _around(store: Store) -> Iterator[_Table]:
    """Eras, settings, configurations, controls, alerts and losses."""
    settings, answers = store.settings(), read_answers(store)
    records = store.eras()
    eras = [
        (
            era.era,
            era.opened_at,
            era.reason,
            msgspec.json.encode(era.models).decode(),
            settings.get(f"active:{era.era}"),
            settings.get(f"versions:{era.era}"),
            msgspec.json.encode(answers[era.era]).decode()
            if era.era in answers and era is not records[-1]
            else None,
            era.key_hash,
            era.schema_hash,
        )
        for era in records
    ]
    plain: dict[str, list[tuple[Any, ...]]] = {
        "eras": eras,
        "configurations": sorted(stored_config.versions(store).items()),
        "controls": [(each.at, each.name, each.value) for each in store.controls()],
        "alerts": [(each.at, each.check, each.status, each.sentence) for each in store.alerts()],
        "losses": [
            (
                each.at,
                each.row,
                each.rows,
                each.first if each.numbers else None,
                each.numbers,
                each.reason,
                each.kept or None,
            )
            for each in store.gaps()
        ],
    }
    for name, rows in plain.items():
        schema = _schema(name)
        yield name, schema, iter([_batch(schema, rows)] if rows else [])


def experiment_json(store: Store, config: ExperimentConfig, agent: Agent | None) -> bytes:
    """What is certified at the moment, and every number that it takes to get there from the
    tables: candidates, caps, the grid of the mixture, levels; infinity is null."""
    root = store.base_snapshot()
    facts: dict[str, Any] = {
        "log": {
            "begins": 0 if root is None else root.seq,
            "rows": store.next_seq if agent is None else agent.light.next_seq,
            "decisions": (
                store.decisions - lost_before(store.gaps(), store.decisions)
                if agent is None
                else agent.state.decisions
            ),
        },
        "config": msgspec.to_builtins(config),
    }
    if agent is not None:
        facts |= _certified(agent, config)
    return msgspec.json.format(msgspec.json.encode(facts), indent=1)


def _certified(agent: Agent, config: ExperimentConfig) -> dict[str, Any]:
    spec, era = agent.state.certifier.spec, agent.rule.era
    candidates = len(spec.names)
    prior = agent.state.certifier.prior_in_force(agent.answers.view().certified, agent.rule)
    parts = []
    for part in range(agent.state.certifier.parts):
        certified, delta = agent.answers.certified(part), agent.state.certifier.delta(era, part)
        band = spec.segments[part - 1] if part else None
        parts.append(
            {
                "segment": certified.segment,
                "column": None if band is None else _column(config, band.column),
                "low": None if band is None else _finite(band.low),
                "high": None if band is None else _finite(band.high),
                "delta": delta,
                "value_level": levels.value_level(delta, candidates),
                "pair_level": levels.pair_level(delta, candidates),
                "decision_level": levels.decision_level(delta, int(certified.active.sum())),
                "decision_levels": levels.decision_levels(delta, certified.active, prior).tolist(),
                "sequence": certified.sequence.value,
                "reason": certified.reason,
                "assumptions": list(certified.assumptions),
                "rows": certified.rows,
                "randomized": certified.randomized,
                "missing": certified.missing,
                "value_low": certified.lower.tolist(),
                "value_high": certified.upper.tolist(),
                "contrast_low": certified.contrasts.tolist(),
            }
        )
    return {
        "rule_id": agent.rule.rule_id,
        "era": era,
        "watermark": agent.answers.view().watermark,
        "models": spec.models,
        "candidates": list(spec.names),
        "policies": [
            {
                "name": spec.names[spec.models + 1 + index],
                "column": _column(config, band.column),
                "at_least": band.low,
                "model": spec.names[inside],
                "otherwise": spec.names[outside],
            }
            for index, (band, inside, outside) in enumerate(spec.policies)
        ],
        "caps": [_finite(cap) for cap in spec.caps],
        "lambdas": LAMBDAS.tolist(),
        "prior": None if prior is None else prior.encode(),
        "spread": SPREAD,
        "last_share": LAST_SHARE,
        "largest_bet": LARGEST_BET,
        "fallback_share": levels.FALLBACK_SHARE,
        "rate_min": config.limits.rate_min,
        "missing": config.reward.meaning.value if spec.of_raters else spec.missing,
        "lone_share": LONE,
        "delivery": _delivery(agent),
        "parts": parts,
    }


def _delivery(agent: Agent) -> dict[str, dict[str, int]]:
    """By model, the draws of the era that are closed: decided, delivered, exposed (`Delivery`)."""
    figures = agent.fold.watched().delivery.result().figures
    return {
        model.name: {
            what: int(figures[what][index]) for what in ("decided", "delivered", "exposed")
        }
        for index, model in enumerate(agent.config.models)
    }


def _column(config: ExperimentConfig, column: int) -> str:
    return f"x_{config.features.context_columns()[column]}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def column_meanings() -> _Table:
    """The table of columns: which table, which column, what it holds."""
    schema = _schema("columns")
    rows = [
        (table, column, meaning)
        for table, columns in MEANINGS.items()
        for column, meaning in columns.items()
    ]
    return "columns", schema, iter([_batch(schema, rows)])
