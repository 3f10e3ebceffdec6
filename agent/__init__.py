"""The streaming agent: decides, learns, infers, serves.

experiment      the front door: one experiment inside your own program
client          the same verbs against a daemon; the standard library alone
agent           decide, observe, refresh, on arrays of rows
controls        what people, alarms and refreshes do to a running experiment
record_adapter  records with names to arrays, and back
errors          what is refused, by field, value and limit
config          every setting as data
features        named values to arrays
moments         mergeable sums, the only state that estimators read
estimators      families of estimates, one a file
inference       certified intervals that hold at every moment
monitors        checks that run all the time
budget          caps, charges, and what is left to spend
lifecycle       what the store keeps beside the log: configurations, eras, rules
state           the fold of the log, and what it owns
decisions       from a frozen rule to a draw
answers         what is known: estimates, certificates, status, recommendation
planning        what must be spent to know
maintenance     audit, export, backups, keys
ingest          other people's logs to records
service         the daemon
cli             commands about a store
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.agent.client import Client as Client
    from equipoise.agent.config import ExperimentConfig as ExperimentConfig
    from equipoise.agent.errors import AgentError as AgentError
    from equipoise.agent.errors import ConfigError as ConfigError
    from equipoise.agent.experiment import Experiment as Experiment
    from equipoise.store.records import Observation as Observation
    from equipoise.store.records import Outcome as Outcome
    from equipoise.store.records import Request as Request
    from equipoise.store.records import Simulation as Simulation

_WHERE = {
    "Experiment": "agent.experiment",
    "Client": "agent.client",
    "ExperimentConfig": "agent.config",
    "Request": "store.records",
    "Outcome": "store.records",
    "Observation": "store.records",
    "Simulation": "store.records",
    "AgentError": "agent.errors",
    "ConfigError": "agent.errors",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    # Loaded when asked for (PEP 562), so that commands and the client stay free of numpy.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"equipoise.{_WHERE[name]}"), name)
