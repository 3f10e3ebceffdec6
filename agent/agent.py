"""The Agent: decides, observes, refreshes. The daemon and the replay run this same class.

`decide` is a few dot products and one draw under a frozen rule, logged before it is answered.
`observe`, `ingest`, `simulate` and `expire` log what came back and fold it into the sums.
`refresh` estimates, certifies and freezes the next rule. Everything the agent knows is a fold
over its log: opening a store restores the newest checkpoint and folds the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.draws import Draws, key_hash
from equipoise.agent.errors import AgentError
from equipoise.agent.estimators import estimate
from equipoise.agent.estimators.base import Estimate
from equipoise.agent.estimators.routing import routing_value
from equipoise.agent.features import Transform
from equipoise.agent.fold import Fold, Reward, View
from equipoise.agent.inference.bounded import Centres, certified_winner
from equipoise.agent.intake import Intake
from equipoise.agent.moments.state import Dimensions
from equipoise.agent.recommendation import Recommendation, recommend
from equipoise.agent.rules import Rule, RuleBook, freeze_rule
from equipoise.agent.snapshots import build_snapshot
from equipoise.policies.draw import draw
from equipoise.policies.registry import policy
from equipoise.policies.snapshot import Snapshot
from equipoise.store.batches import (
    Batch,
    DecisionBatch,
    ExpiryBatch,
    Flags,
    Floats,
    ObservationBatch,
    OutcomeBatch,
    RequestBatch,
    SimulationBatch,
)
from equipoise.store.contract import Store
from equipoise.store.records import Era, RuleRecord


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a batch: rows logged, exact repeats dropped, rows after their expiry."""

    rows: int
    duplicates: int = 0
    late: int = 0


class Agent:
    """One experiment over one store.

    config: models, reward, features, policy, budget; frozen in the store at first use.
    key: 32 secret bytes; with the experiment's name and a decision's number it fixes the draw.
    None opens an existing store for reading: everything but `decide` works.
    at: seconds since the epoch, only used to date the first era and rule.
    Raises AgentError or StoreError where config or key are not those the store was opened with.
    """

    def __init__(
        self, config: ExperimentConfig, store: Store, key: bytes | None, *, at: float = 0.0
    ) -> None:
        self.config = config
        self.store = store
        self.models = tuple(model.name for model in config.models)
        self.transform = Transform(config.features)
        self.policy = policy(f"{config.policy.gate}+{config.policy.assignment}")
        self.observing_only = False
        self.budget = config.budget.requests
        self.would_randomize = 0
        """Requests that were only observed and would have been randomized, since the start."""
        self.late = 0
        self.duplicates = 0
        self._draws = None if key is None else Draws(key, config.name)
        self._freeze(key, at)
        self.rules = RuleBook(store)
        self.fold = Fold(
            Dimensions(len(self.models), self.transform.d, self.transform.p),
            self.transform.q,
            self.transform,
            self.rules,
            Reward(
                config.reward.low,
                config.reward.high,
                config.reward.missing_value,
            ),
            config.limits.rate_min,
        )
        self._intake = Intake(config, self.transform, self.fold, store)
        checkpoint = store.restore()
        if checkpoint is not None:
            self.fold.load_bytes(checkpoint.state)
        self._view: View | None = None
        self._view_seq = -1
        self.follow()
        self.rule = self._last_rule(at)

    @property
    def sign(self) -> int:
        """+1 where larger rewards are better, -1 where smaller are."""
        return 1 if self.config.reward.maximise else -1

    def decide(self, requests: RequestBatch) -> DecisionBatch:
        """Decide n requests under the rule in force; logged before this returns.

        Raises AgentError for arrays of the wrong shape, numbers that are not finite, and models
        that do not exist; nothing is logged then.
        """
        if self._draws is None:
            raise AgentError("this agent was opened without its key and cannot decide")
        self._intake.check_requests(requests)
        rule = self.rule
        count = len(requests)
        first = self.fold.pending.next
        rate, shares = rule.allocation.allocate(requests.x, requests.eligible)
        uniform = self._draws.uniforms(first, count)
        rate, capped = self._without_candidates(rate, requests.eligible)
        model, randomized = draw(uniform, rate, shares, requests.routed)
        if self.observing_only:
            self.would_randomize += int(np.count_nonzero(randomized))
        left = self._budget_left()
        if left is not None and np.count_nonzero(randomized) >= left:
            # Whether the budget still covers a request depends on earlier draws alone.
            spent = np.cumsum(randomized) - randomized >= left
            capped = capped | spent
            rate = np.where(spent, 0.0, rate)
            model, randomized = draw(uniform, rate, shares, requests.routed)
        batch = DecisionBatch(
            number=np.arange(first, first + count),
            unit=requests.unit,
            context=requests.context,
            at=requests.at,
            x=requests.x,
            routed=requests.routed,
            rate=rate,
            probabilities=shares,
            uniform=uniform,
            model=model,
            randomized=randomized,
            capped=capped,
            rule_id=rule.rule_id,
            era=rule.era,
            eligible=requests.eligible,
            request_id=requests.request_id,
            unit_id=requests.unit_id,
            context_id=requests.context_id,
        )
        self._log(batch)
        return batch

    def observe(self, outcomes: OutcomeBatch) -> Accepted:
        """Log parts of outcomes. Exact repeats are dropped, rows after their expiry counted.

        Raises UnknownDecisionError, ConflictError or AgentError; nothing is logged then.
        """
        kept, duplicates, late = self._intake.outcomes(outcomes)
        self.duplicates += duplicates
        self.late += late
        if len(kept):
            self._log(kept)
        return Accepted(len(kept), duplicates, late)

    def ingest(self, observations: ObservationBatch) -> Accepted:
        """Log OBS rows that never went through a decision."""
        self._intake.check_observations(observations)
        self._log(observations)
        return Accepted(len(observations))

    def simulate(self, simulations: SimulationBatch) -> Accepted:
        """Log SIM rows; a (context, model) counts once.

        Raises ConflictError where the same context and model come with other outputs.
        """
        kept, duplicates = self._intake.simulations(simulations)
        if len(kept):
            self._log(kept)
        return Accepted(len(kept), duplicates)

    def expire(self, now: float) -> int:
        """Close decisions whose outcome window ended before `now` (seconds); how many."""
        window = self.config.reward.window
        if window is None:
            return 0
        table = self.fold.pending
        rows = slice(0, table.size)
        complete = table.has_reward[rows] & table.has_outputs[rows]
        closing = ~complete & ~table.expired[rows] & (table.at[rows] < now - window)
        numbers = table.base + np.flatnonzero(closing)
        if len(numbers):
            self._log(ExpiryBatch(numbers, np.full(len(numbers), now)))
        return len(numbers)

    def refresh(self, at: float = 0.0) -> Snapshot:
        """Estimate, certify, and freeze the next rule from everything logged so far."""
        snapshot = self.snapshot()
        self.adopt(self.rule_for(snapshot, at))
        return snapshot

    def rule_for(self, snapshot: Snapshot, at: float) -> RuleRecord:
        """The next rule, frozen from what is known: a pure function, nothing is stored."""
        centres = self.view().certified.centres()
        since = self.fold.pending.next
        rule, body = freeze_rule(self.rule.era, since, self.policy.freeze(snapshot), centres)
        return RuleRecord(rule_id=rule.rule_id, era=rule.era, at=at, body=body)

    def adopt(self, record: RuleRecord) -> None:
        """Store a rule that was frozen for this log, here or by a follower, and act by it."""
        self.store.put(record)
        self.rules.learn(record)
        self.rule = self.rules.rule(record.rule_id)

    def snapshot(self) -> Snapshot:
        """What a policy would see now."""
        view = self.view()
        family = self.config.policy.estimator
        looked = self.estimates([family])[family] if self.policy.uses_estimate else None
        certified = self.config.policy.gate != "fixed-rate" and self.certified_winner() is not None
        return build_snapshot(
            self.config,
            view.moments,
            looked,
            requests=self.fold.pending.next,
            certified=certified,
            seed=self.fold.pending.next,
        )

    def view(self) -> View:
        """Sums up to the newest log row; copies that the caller must not write to."""
        if self._view is None or self._view_seq != self.fold.next_seq:
            self._view, self._view_seq = self.fold.view(), self.fold.next_seq
        return self._view

    def estimates(self, families: Iterable[str]) -> dict[str, Estimate]:
        """Values of the models by each of these families."""
        # Plain means are the better reading only while no request was treated like no other.
        context_free = self.rules.context_free and not self.fold.masked
        return estimate(self.view().moments, list(families), context_free=context_free)

    def routing(self) -> tuple[float, float]:
        """Value of today's routing and its variance, reward units."""
        return routing_value(self.view().moments)

    def recommendation(self, family: str | None = None) -> Recommendation:
        """The answer of one family, by default the configured one."""
        name = family or self.config.policy.estimator
        looked = self.estimates([name])[name]
        return recommend(self.models, looked, self.routing(), self.sign)

    def certified_winner(self) -> str | None:
        """The model certified within epsilon of the best at level delta, at any time."""
        reward, rules = self.config.reward, self.config.policy
        winner = certified_winner(
            self.view().certified,
            rules.delta,
            rules.epsilon / (reward.high - reward.low),
            self.sign,
        )
        return None if winner is None else self.models[winner]

    def follow(self) -> int:
        """Fold what another writer appended to the store since; how many rows the log has now.

        For an agent that reads beside the daemon. Rules must be learnt first (`rules.learn`).
        """
        for segment in self.store.read(since=self.fold.next_seq):
            self.fold.apply(segment.seq, segment.batch)
        return self.fold.next_seq

    def checkpoint(self, at: float = 0.0) -> None:
        """Save the state, so that opening the store again need not fold from the start."""
        self.store.checkpoint(self.fold.next_seq, self.fold.to_bytes(), at)

    def _log(self, batch: Batch) -> None:
        self.fold.apply(self.store.append(batch), batch)

    def _budget_left(self) -> int | None:
        """Requests that may still be randomized, None where there is no limit."""
        if self.observing_only:
            return 0
        return None if self.budget is None else self.budget - self.fold.randomized

    @staticmethod
    def _without_candidates(rate: Floats, eligible: Flags | None) -> tuple[Floats, Flags]:
        """No eligible model: nothing to randomize, the rate is 0 and said to be capped."""
        if eligible is None:
            return rate, np.zeros(len(rate), dtype=bool)
        none: Flags = np.logical_not(eligible.any(axis=1))
        return np.where(none, 0.0, rate), none

    def _freeze(self, key: bytes | None, at: float) -> None:
        schema = self.config.features.schema_hash
        self.store.freeze("config", self.config.to_json())
        if key is None:
            return
        self.store.freeze("schema_hash", schema)
        self.store.freeze("key_hash", key_hash(key))
        if not self.store.eras():
            self.store.put(
                Era(
                    era=0,
                    opened_at=at,
                    reason="the experiment opens",
                    models=list(self.models),
                    key_hash=key_hash(key),
                    schema_hash=schema,
                )
            )

    def _last_rule(self, at: float) -> Rule:
        stored = self.store.rules()
        if stored:
            return self.rules.rule(stored[-1].rule_id)
        if self.fold.next_seq:
            raise AgentError("the store has log rows but no rule: it is not an agent's store")
        snapshot = build_snapshot(
            self.config, self.fold.moments, None, requests=0, certified=False, seed=0
        )
        return self.rules.add(
            0, 0, at, self.policy.freeze(snapshot), Centres.neutral(len(self.models))
        )
