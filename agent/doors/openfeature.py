"""A provider for the OpenFeature SDK in Python: evaluations by OFREP, outcomes by `track`.

    from openfeature import api
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.track import TrackingEventDetails

    api.set_provider(EquipoiseProvider("http://127.0.0.1:8080"))
    flags = api.get_client()
    context = EvaluationContext("user-7", {"request_id": "r1", "routed": "large", "words": 12})
    model = flags.get_string_value("chat", "large", context)
    ...
    flags.track("exposure", context)  # the user saw the answer
    flags.track("outcome", context, TrackingEventDetails(1.0, {"outputs": {"seconds": 0.4}}))

It needs openfeature-sdk, openfeature-provider-ofrep and the client; a copy goes beside a copy of
`client.py`, under another name, for `openfeature` is the SDK's. The stock provider evaluates just
as well, but OFREP has no call for outcomes. This one remembers what was decided, so an event finds
its decision by the `request_id` of the context, and refuses an event whose `targetingKey` is not
the unit that the decision was made for. What it sends waits in the client's buffer: neither an
evaluation nor `track` raises or waits longer than the time-out because of the daemon.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

try:
    from equipoise.agent.client import PARTS, Client
except ImportError:  # copied
    from client import PARTS, Client  # type: ignore[import-not-found, no-redef]

try:
    from openfeature.contrib.provider.ofrep import OFREPProvider
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.provider import Metadata

    MISSING = ""
except ImportError as error:  # what needs no SDK can be used without it
    OFREPProvider, MISSING = object, str(error)

TIMEOUT_SECONDS = 0.25
REMEMBERED = 100_000
LONGEST_REASON = 40


class Outcomes:
    """Decisions by their requests, and what is reported of them.

    client: delivers. outcome, exposure: names of the events that speak of decisions. remembered:
    the newest decisions that an event can find by its request_id alone.

    counters: events sent, `ignored` for those of other names, and what was refused, by reason:
    `no-decision`, it names none; `other-decision`, it names two; `other-unit`, it is another's;
    `not-logged`, the request was passed through; `no-part`, it says nothing.
    """

    def __init__(
        self,
        client: Client,
        outcome: str = "outcome",
        exposure: str = "exposure",
        remembered: int = REMEMBERED,
    ) -> None:
        self.client = client
        self.counters: Counter[str] = Counter()
        self._events: dict[str, dict[str, Any]] = {
            outcome: {},
            exposure: {"delivered": True},
        }
        self._remembered = remembered
        self._decisions: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._requests: dict[str, str] = {}
        self._lock = threading.Lock()

    def remember(self, metadata: Mapping[str, Any]) -> None:
        """Keep what an evaluation said of its decision."""
        name, decision_id = metadata.get("request_id"), metadata.get("decision_id")
        if not isinstance(name, str):
            return
        with self._lock:
            self._decisions[name] = dict(metadata)
            if decision_id is not None:
                self._requests[decision_id] = name
            if len(self._decisions) > self._remembered:
                _, oldest = self._decisions.popitem(last=False)
                self._requests.pop(oldest.get("decision_id", ""), None)

    def track(
        self,
        event: str,
        unit: str | None,
        context: Mapping[str, Any],
        value: float | None,
        attributes: Mapping[str, Any],
    ) -> str:
        """Report an event; what it is counted as. Never raises.

        unit, context: the targeting key and attributes of the evaluation context. value: the
        reward. attributes: parts of an outcome by their names, and of what was decided any of
        request_id, decision_id, unit and outcome_token, as they stand in the metadata.
        """
        try:
            counted = self._track(event, unit, context, value, attributes)
        except Exception as error:
            counted = f"refused: {error!r}"[:LONGEST_REASON]
        self.counters[counted] += 1
        return counted

    def _track(
        self,
        event: str,
        unit: str | None,
        context: Mapping[str, Any],
        value: float | None,
        attributes: Mapping[str, Any],
    ) -> str:
        if event not in self._events:
            return "ignored"
        decision_id = attributes.get("decision_id")
        with self._lock:
            name = attributes.get("request_id") or self._requests.get(decision_id or "")
            name = name or context.get("request_id")
            known = self._decisions.get(name, {}) if isinstance(name, str) else {}
        if not isinstance(name, str):
            return "no-decision"
        if known and known.get("decision_id") is None:
            return "not-logged"
        if decision_id is not None and known and known["decision_id"] != decision_id:
            return "other-decision"
        units = {each for each in (known.get("unit"), attributes.get("unit"), unit) if each}
        if len(units) > 1:
            return "other-unit"
        parts = {**self._events[event]}
        if value is not None:
            parts["reward"] = value
        parts |= {part: attributes[part] for part in PARTS if part in attributes}
        token = parts.pop("outcome_token", None) or known.get("outcome_token")
        if not parts:
            return "no-part"
        if units:
            parts["unit_id"] = units.pop()
        if token is not None:
            parts["outcome_token"] = token
        self.client.outcome(name, **parts)
        return "sent"


class EquipoiseProvider(OFREPProvider):  # type: ignore[misc]
    """An OFREP provider that tracks.

    base_url: of the daemon. token: of scope `route`, where it asks for one. timeout: seconds that
    an evaluation may take. outcome, exposure: names of the events that are reported; all others are
    ignored. buffer, remembered: as of `Client` and `Outcomes`. headers_factory: more headers.
    outcomes: what became of the events. Raises ImportError where the SDK is missing, ValueError as
    `Client`.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        outcome: str = "outcome",
        exposure: str = "exposure",
        buffer: int = 10_000,
        remembered: int = REMEMBERED,
        headers_factory: Callable[[], dict[str, str]] | None = None,
    ) -> None:
        if MISSING:
            raise ImportError(f"{MISSING}: pip install openfeature-sdk openfeature-provider-ofrep")

        def headers() -> dict[str, str]:
            own = {} if token is None else {"Authorization": f"Bearer {token}"}
            return {**own, **(headers_factory() if headers_factory else {})}

        super().__init__(base_url, headers_factory=headers, timeout=timeout)
        client = Client(base_url, token, timeout=timeout, buffer=buffer)
        self.outcomes = Outcomes(client, outcome, exposure, remembered)

    def get_metadata(self) -> Any:
        return Metadata(name="Equipoise")

    def shutdown(self) -> None:
        """Deliver what is left, for a second at the most."""
        self.outcomes.client.close()

    def _resolve(
        self, flag_type: Any, flag_key: str, default_value: Any, evaluation_context: Any = None
    ) -> Any:
        context = evaluation_context or EvaluationContext()
        name = context.attributes.get("request_id")
        if name is None:
            # With a name of its own, what came too late can be told from what never came.
            name = f"openfeature-{uuid4()}"
            attributes = {**context.attributes, "request_id": name}
            context = EvaluationContext(context.targeting_key, attributes)
        try:
            details = super()._resolve(flag_type, flag_key, default_value, context)
        except Exception as error:
            if _perhaps_decided(error) and isinstance(default_value, str):
                asked = {"context": {"targetingKey": context.targeting_key, **context.attributes}}
                asked["context"]["again"] = True
                path = f"/ofrep/v1/evaluate/flags/{flag_key}"
                self.outcomes.client.undelivered(name, default_value, path, asked)
            raise
        self.outcomes.remember(details.flag_metadata)
        return details

    async def resolve_string_details_async(
        self, flag_key: str, default_value: str, evaluation_context: Any = None
    ) -> Any:
        """In a thread: the stock provider would hold up the event loop."""
        resolve = self.resolve_string_details
        return await asyncio.to_thread(resolve, flag_key, default_value, evaluation_context)

    def track(
        self,
        tracking_event_name: str,
        evaluation_context: Any = None,
        tracking_event_details: Any = None,
    ) -> None:
        """Report an outcome or an exposure; returns at once and never raises."""
        context, details = evaluation_context, tracking_event_details
        self.outcomes.track(
            tracking_event_name,
            None if context is None else context.targeting_key,
            {} if context is None else context.attributes,
            None if details is None else details.value,
            {} if details is None else details.attributes,
        )


def _perhaps_decided(error: Exception) -> bool:
    """Whether the daemon may have logged a decision that nobody got."""
    response = getattr(error.__cause__, "response", None)
    return response is None or response.status_code >= 500
