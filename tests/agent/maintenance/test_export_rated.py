"""What is certified of those who rate follows from the exported files alone."""

from __future__ import annotations

import numpy as np
import pytest
from traffic import config

from equipoise.agent.config import PolicyConfig, RewardConfig
from equipoise.agent.maintenance.export import write_tables
from equipoise.store.sqlite import SqliteStore
from tests.agent.maintenance.test_export import Outsider, played


class OfRaters(Outsider):
    """Sums of one pair of models at any two thetas, and what they rule out."""

    def __init__(self, folder, first, second):
        super().__init__(folder, "parquet")
        self.rows, self.pair = self.decisions[self.decisions["entered"]], (first, second)
        keys = ["rule_id", "candidate"]
        self.rating, self.rewards = (
            self.table(name).set_index(keys) for name in ("tuning", "rated_tuning")
        )
        self.centres = self.table("rated_centres").set_index(["rule_id", "cap", "candidate"])
        self.scale = self.config["reward"]["high"] - self.config["reward"]["low"]
        self.parts = {
            (cap, end): np.array([self.scores(row, cap, end) for row in self.records()])
            for cap in (0, 1)
            for end in (0, 1)
        }

    def records(self):
        return self.rows.reset_index().to_dict("records")

    def fitted(self, table, row, model, raw):
        line = table.loc[row["rule_id"], model]
        raw = line["usual"] if np.isnan(raw) else raw
        return min(max(line["offset"] + line["factor"] * raw, 0.0), 1.0)

    def scores(self, row, cap, end):
        """A and B of psi of the first (low, end 0) or second model (high, end 1), and of its
        centre."""
        model, size = self.pair[end], self.caps[cap]
        chance, drawn, raw = self.chances(row)[model]
        b = self.fitted(self.rating, row, model, raw)
        a = min(b, self.fitted(self.rewards, row, model, raw))
        factor = min(1.0, size / (1 / chance - 1))
        mu = np.array([factor * a + end * (1 - factor), factor * (1 - b)])
        if not row["got"]:
            reward = np.array([float(end), 0.0])
        elif np.isnan(row["reward"]):
            reward = np.array([0.0, 1.0])
        else:
            reward = np.array([(row["reward"] - self.config["reward"]["low"]) / self.scale, 0.0])
        side = ("low", "high")[end]
        centre = self.centres.loc[row["rule_id"], cap, model]
        expected = centre[[f"{side}_fixed", f"{side}_free"]].to_numpy(float)
        return mu + (reward - mu) * drawn / chance, expected

    def rejects(self, first, second, level):
        """Whether q(first) <= the one theta and q(second) >= the other is ruled out, either None
        for a test of one model alone."""
        lambdas = np.array(self.facts["lambdas"])
        exponents, alone = [], None in (first, second)
        bounds = [cap + (1.0 if alone else 2.0) for cap in self.caps[:2]]
        for cap, bound in enumerate(bounds):
            xi, squares = 0.0, np.zeros(len(self.rows))
            for theta, end, sign in ((first, 0, 1), (second, 1, -1)):
                if theta is not None:
                    psi, centre = self.parts[cap, end].transpose(1, 0, 2) @ [1.0, theta]
                    xi, squares = xi + sign * (psi - theta).sum(), squares + sign * (psi - centre)
            penalty = (-np.log1p(-lambdas) - lambdas) * (squares**2).sum() / bound**2
            exponents.append(lambdas * xi / bound - penalty)
        weights = self.weights(lambdas, bounds, level, 0.5 if alone else 1.0)
        return np.concatenate(weights) @ np.exp(np.concatenate(exponents)) >= 1 / level


@pytest.mark.parametrize("pair", [("cheap", "slow"), ("slow", "cheap")])
def test_a_difference_among_those_who_rate_is_the_largest_that_every_theta_rules_out(
    pair, tmp_path
):
    settings = config(
        policy=PolicyConfig(assignment="top-two", rate=0.6),
        reward=RewardConfig(low=-1.0, high=3.0, window=100.0, missing="rated"),
    )
    with SqliteStore(tmp_path / "log.db") as store:
        played(store, settings)
        write_tables(store, settings, tmp_path / "out", "parquet")
    outsider = OfRaters(tmp_path / "out", *pair)
    part = outsider.facts["parts"][0]
    first, second = (outsider.facts["candidates"].index(each) for each in pair)
    end = part["contrast_low"][first][second] / outsider.scale
    assert -0.9 < end < 0.9, "an end that says something"
    lone, level = outsider.facts["lone_share"], part["pair_level"]

    def open_thetas(difference):
        """Thetas of a grid that none of the three tests rules out."""
        grid = np.linspace(max(0.0, -difference), min(1.0, 1.0 - difference), 201)
        return [
            theta
            for theta in grid
            if not outsider.rejects(theta + difference, theta, level * (1 - 2 * lone))
            and not outsider.rejects(theta + difference, None, level * lone)
            and not outsider.rejects(None, theta, level * lone)
        ]

    assert not open_thetas(end - 1e-6)
    assert open_thetas(end + 0.01)
