"""Bandit feedback of a store, recomputed from the raw rows of `equipoise export --format parquet`.

Reads the files alone, row by row, with other code than the product's: what `docs/export.md` says of
reward, chance and delivery, and no more. Needs numpy and pandas.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

ROUTING = "(today's routing)"


class RawRows:
    """The rows of the era in force. models: names; actions: what can be served, in order;
    candidates: models that the era compares, today's routing, declared policies.

    rows: one dict each: id, action, chances (by action), low, high, chosen (by candidate).
    left_out: decisions that are no row, by whether they are of another era, in the row of their
    unit, or anything else.
    """

    def __init__(self, folder: Path) -> None:
        facts = json.loads((folder / "experiment.json").read_text())
        self.config = facts["config"]
        self.models = facts["candidates"][: facts["models"]]
        self.missing = facts["missing"]
        self.sticky = self.config.get("units") is not None
        decisions = pd.read_parquet(folder / "decisions.parquet")
        rules = pd.read_parquet(folder / "rules.parquet").set_index("rule_id")
        active = rules.loc[facts["rule_id"], [f"active_{model}" for model in self.models]]
        self.compared = [model for model, on in zip(self.models, active, strict=True) if on]
        self.policies = [
            each
            for each in facts["policies"]
            if {each["model"], each["otherwise"]} <= set(self.compared)
        ]
        self.actions = [*self.models, *([ROUTING] if self.sticky else [])]
        names = [policy["name"] for policy in self.policies]
        self.candidates = [*self.compared, ROUTING, *names]
        self._told(folder, decisions)
        members: dict[str, list[dict]] = {}
        of_unit = decisions["leader_id"].fillna(decisions["decision_id"])
        records = decisions.to_dict("records")
        for row, leader in zip(records, of_unit, strict=True):
            members.setdefault(leader, []).append(row)
        self.rows, self.left_out = [], Counter()
        for row, leader in zip(records, of_unit, strict=True):
            if row["era"] != facts["era"]:
                self.left_out["another era"] += 1
            elif leader != row["decision_id"]:
                self.left_out["unit"] += 1
            elif not row["entered"]:
                self.left_out["other"] += 1
            else:
                widened = bool(rules.loc[row["rule_id"], "widened"])
                self._add(row, members[leader], widened)

    def _told(self, folder: Path, decisions: pd.DataFrame) -> None:
        """The reward of each decision that came in time, and whether it was served as drawn."""
        known = dict(decisions[["decision_id", "model"]].itertuples(index=False))
        routed = dict(decisions[["decision_id", "routed"]].itertuples(index=False))
        self.reward: dict[str, float] = {}
        self.as_drawn: dict[str, bool] = {}
        closed: dict[str, int] = {}
        if (folder / "expiries.parquet").exists():
            expiries = pd.read_parquet(folder / "expiries.parquet")
            closed = expiries.groupby("decision_id")["seq"].min().to_dict()
        outcomes = pd.read_parquet(folder / "outcomes.parquet").sort_values("seq")
        attempts: dict[str, dict[int, list]] = {}
        for part in outcomes.to_dict("records"):
            name = part["decision_id"]
            if part["seq"] > closed.get(name, np.inf):
                continue
            if not np.isnan(part["reward"]):
                self.reward.setdefault(name, part["reward"])
            if pd.isna(part["attempt"]):
                continue
            said = attempts.setdefault(name, {}).setdefault(int(part["attempt"]), [True, None])
            said[0] = said[0] and bool(part["delivered"])
            said[1] = part["served"] if isinstance(part["served"], str) else said[1]
        for name, said in attempts.items():
            delivered = [number for number, (got, _) in said.items() if got]
            got, served = said[max(delivered or said)]
            served = served or (known[name] if got else routed[name])
            self.as_drawn[name] = bool(delivered) and served == known[name]

    def _ends(self, row: dict, widened: bool) -> tuple[float, float]:
        low, high = self.config["reward"]["low"], self.config["reward"]["high"]
        name = row["decision_id"]
        if not self.as_drawn.get(name, True):
            return low, high
        if name in self.reward:
            return self.reward[name], self.reward[name]
        if self.missing is None or widened:
            return low, high
        value = low + self.missing * (high - low)
        return value, value

    def _add(self, row: dict, members: list[dict], widened: bool) -> None:
        ends = np.array([self._ends(each, widened) for each in members]).mean(axis=0)
        rate = row["rate"]
        chances = {model: rate * row[f"p_{model}"] for model in self.models}
        chosen = {model: model for model in self.compared}
        if self.sticky:
            chances[ROUTING] = 1 - rate
            action = row["model"] if row["randomized"] else ROUTING
            chosen[ROUTING] = ROUTING
        else:
            chances[row["routed"]] += 1 - rate
            action = row["model"]
            chosen[ROUTING] = row["routed"]
        for policy in self.policies:
            inside = row[policy["column"]] >= policy["at_least"]
            chosen[policy["name"]] = policy["model"] if inside else policy["otherwise"]
        name = row["request_id"] if isinstance(row["request_id"], str) else row["decision_id"]
        self.rows.append(
            {
                "id": name,
                "action": action,
                "chances": chances,
                "low": ends[0],
                "high": ends[1],
                "chosen": chosen,
            }
        )

    def estimates(self, end: str) -> dict[str, tuple[float, float]]:
        """(IPS, SNIPS) of every candidate. end: low or high."""
        found = {}
        for candidate in self.candidates:
            weights = [
                (row["action"] == row["chosen"][candidate]) / row["chances"][row["action"]]
                for row in self.rows
            ]
            total = float(np.dot(weights, [row[end] for row in self.rows]))
            found[candidate] = total / len(self.rows), total / sum(weights)
        return found
