"""Bandit feedback as files: JSON lines of a decision service, which Vowpal Wabbit reads, and
Parquet with the arrays that the estimators of Open Bandit Pipeline take.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.features import Transform
from equipoise.agent.maintenance.atomic_files import whole_folder
from equipoise.agent.maintenance.export_bandit import BanditLog, Estimates, Feedback
from equipoise.store.batches import Floats
from equipoise.store.contract import Store


class Writer(Protocol):
    """Writes feedback into a folder. files: what was written, by name."""

    files: dict[str, int]

    def write(self, rows: Feedback) -> None: ...


class DecisionServiceLines:
    """`decisions.dsjson`, one JSON object a line, with costs for lower ends; and
    `decisions_high.dsjson` with those for upper ends, where any reward has two. A cost is -reward,
    or the reward itself where smaller rewards are better."""

    NAME, HIGH = "decisions.dsjson", "decisions_high.dsjson"

    def __init__(
        self, folder: Path, stack: ExitStack, log: BanditLog, config: ExperimentConfig
    ) -> None:
        self._folder, self._stack = folder, stack
        self._columns = [f"x_{name}" for name in Transform(config.features).context_names]
        self._actions = log.actions
        self._rule_ids = log.rule_ids
        self._encode = msgspec.json.Encoder().encode
        # As names of features, not as values: in those Vowpal Wabbit takes "a:b" and "a_b"
        # for the same.
        self._action_features = [{"m": {f"model={name}": 1.0}} for name in log.actions.names]
        self._routed = [{f"routed={name}": 1.0} for name in config.model_names]
        every = range(len(log.actions.names))
        self._orders = [[first, *(each for each in every if each != first)] for first in every]
        self._low = stack.enter_context((folder / self.NAME).open("wb"))
        self._high: Any = None
        self._sign = -1.0 if config.reward.maximise else 1.0
        self.files = {self.NAME: 0}

    def write(self, rows: Feedback) -> None:
        if self._high is None and (rows.low != rows.high).any():
            self._low.flush()
            copyfile(self._folder / self.NAME, self._folder / self.HIGH)
            self._high = self._stack.enter_context((self._folder / self.HIGH).open("ab"))
            self.files[self.HIGH] = self.files[self.NAME]
        rests = self._rests(rows)
        self._low.write(_lines(self._sign * rows.low, rests))
        self.files[self.NAME] += len(rows)
        if self._high is not None:
            self._high.write(_lines(self._sign * rows.high, rests))
            self.files[self.HIGH] += len(rows)

    def _rests(self, rows: Feedback) -> list[bytes]:
        """Every line behind its cost."""
        encode, candidates = self._encode, self._actions.candidates
        same = (rows.action[:, None] == rows.chosen).astype(np.float64).tolist()
        lines = []
        for number, name, at, x, routed, rule, action, probabilities, predicted in zip(
            rows.number.tolist(),
            rows.request_id,
            rows.at.tolist(),
            rows.x.tolist(),
            rows.routed.tolist(),
            rows.rule.tolist(),
            rows.action.tolist(),
            rows.probabilities.tolist(),
            same,
            strict=True,
        ):
            order = self._orders[action]
            lines.append(
                encode(
                    {
                        "_label_probability": probabilities[action],
                        "_label_Action": action + 1,
                        "_labelIndex": action,
                        "Timestamp": f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S.%f}0Z",
                        "Version": "1",
                        "EventId": name or f"d{number}",
                        "a": [each + 1 for each in order],
                        "c": {
                            "x": dict(zip(self._columns, x, strict=True)),
                            "r": self._routed[routed],
                            "_multi": self._action_features,
                        },
                        "p": [probabilities[each] for each in order],
                        "VWState": {"m": self._rule_ids[rule]},
                        "p_pred": dict(zip(candidates, predicted, strict=True)),
                    }
                )
            )
        return lines


def _lines(cost: Floats, rests: list[bytes]) -> bytes:
    costs = (cost + 0.0).tolist()  # no -0.0
    return b"".join(
        b'{"_label_cost":%s,%s\n' % (repr(cost).encode(), rest[1:])
        for cost, rest in zip(costs, rests, strict=True)
    )


class BanditFeedbackTable:
    """`bandit_feedback.parquet`: a column for each array that obp takes, lists where it has two
    dimensions, and one of `action_dist` for each candidate."""

    NAME = "bandit_feedback.parquet"

    def __init__(
        self, folder: Path, stack: ExitStack, log: BanditLog, config: ExperimentConfig
    ) -> None:
        self._models, self._actions = len(config.models), len(log.actions.names)
        self._candidates = log.actions.candidates
        width = Transform(config.features).d + self._models
        every = pa.list_(pa.float64(), self._actions)
        self._schema = pa.schema(
            [
                ("request_id", pa.string()),
                ("decision_id", pa.string()),
                ("at", pa.float64()),
                ("context", pa.list_(pa.float64(), width)),
                ("action", pa.int64()),
                ("position", pa.int64()),
                ("reward", pa.float64()),
                ("reward_high", pa.float64()),
                ("pscore", pa.float64()),
                ("pi_b", every),
                *((f"action_dist_{name}", every) for name in self._candidates),
            ]
        )
        path = folder / self.NAME
        self._writer = stack.enter_context(pq.ParquetWriter(path, self._schema))
        self.files = {self.NAME: 0}

    def write(self, rows: Feedback) -> None:
        one_hot, actions = np.eye(self._models), np.eye(self._actions)
        columns = [
            [name or None for name in rows.request_id],
            [f"d{number}" for number in rows.number.tolist()],
            rows.at,
            np.hstack([rows.x, one_hot[rows.routed]]),
            rows.action,
            np.zeros(len(rows), dtype=np.int64),
            rows.low,
            rows.high,
            rows.pscore,
            rows.probabilities,
            *(actions[chosen] for chosen in rows.chosen.T),
        ]
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), type=field.type)
            if isinstance(column, np.ndarray) and column.ndim == 2
            else pa.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self.files[self.NAME] += len(rows)


_WRITERS: dict[str, Callable[..., Writer]] = {
    "dsjson": DecisionServiceLines,
    "obp": BanditFeedbackTable,
}


def write_feedback(
    store: Store,
    config: ExperimentConfig,
    out: Path,
    format_: str,
    *,
    era: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda rows, read: None,
) -> dict[str, Any]:
    """Write bandit feedback into a new folder, whole or not at all.

    format_: dsjson or obp. era: None for the one in force. force: replace a folder that an export
    made before. progress: called with the rows written and the decisions left out so far. Returns
    what experiment.json says, and `files`: rows by file. Raises AgentError, before anything is
    read, where `out` exists otherwise or the era does not.
    """
    source: Path | None = getattr(store, "path", None)
    log = BanditLog(store, config, era)
    estimates = Estimates(log)
    with whole_folder(out, replace="experiment.json" if force else None, source=source) as folder:
        with ExitStack() as stack:
            writer: Writer = _WRITERS[format_](folder, stack, log, config)
            for rows in log.blocks():
                writer.write(rows)
                estimates.add(rows)
                progress(log.rows, sum(log.left_out.values()))
        said = _facts(log, config, format_, estimates)
        (folder / "experiment.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(said), indent=1) + b"\n"
        )
    return {**said, "files": writer.files}


def _facts(
    log: BanditLog, config: ExperimentConfig, format_: str, estimates: Estimates
) -> dict[str, Any]:
    """What is in the files, as experiment.json says it."""
    reward, names = config.reward, Transform(config.features).context_names
    return {
        "format": format_,
        "experiment": config.name,
        "era": log.era,
        "row": "unit" if log.spec.sticky else "request",
        "reward": {
            "low": reward.low,
            "high": reward.high,
            "maximise": reward.maximise,
            "missing": reward.missing,
        },
        "actions": log.actions.names,
        "context": [*names, *(f"routed={name}" for name in config.model_names)],
        "rows": log.rows,
        "left_out": dict(sorted(log.left_out.items())),
        "usage_rows": log.usage_rows,
        "estimates": estimates.report(),
    }
