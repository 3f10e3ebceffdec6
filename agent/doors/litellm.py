"""LiteLLM's side: which model group answers a request, and what came of it.

One file for the proxy and the SDK. It needs litellm and `equipoise.agent.client`, or that file
copied beside this one as `client.py`. In the proxy, copy both next to `config.yaml` (this one as
`equipoise_litellm.py`, for a file called litellm.py would hide the package) and name the plugin:

    litellm_settings: {callbacks: equipoise_litellm.plugin}
    callback_settings:
      equipoise:
        url: http://127.0.0.1:8080
        models: {large: gpt-4o, small: [gpt-4o-mini, gpt-4o-mini-eu]}  # experiment model: groups
        routed: {chat: large}  # what production serves to whom asks for `chat`
        features: {words: prompt.words}
        outputs: {seconds: seconds}

With the SDK:

    door = Equipoise(Settings(models={"large": ("gpt-4o",), "small": ("gpt-4o-mini",)}))
    litellm.callbacks.append(door)
    response = await router.acompletion(**await door.prepare(model="gpt-4o", messages=messages))

A request is decided once, before the Router sees it: the plugin puts the drawn model's group in the
place of the model that was asked for. Everything that the Router does then (load balancing inside
the group, retries, fallbacks) stays as it is, and a cache keeps the answers of each group apart.
What was tried is counted where LiteLLM tries it, once per attempt. The daemon's name of a request
is its call id, which the proxy takes from `x-litellm-call-id` and sends back in that header.
"""

# Without `from __future__ import annotations`: LiteLLM executes this file without entering it into
# sys.modules, where dataclasses would look for what a quoted annotation means.
import atexit
import importlib.util
import logging
import os
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

if TYPE_CHECKING:
    from equipoise.agent.client import Choice, Client
else:
    try:
        from equipoise.agent.client import Choice, Client
    except ImportError:  # copied into the environment of a proxy, beside the client
        _spec = importlib.util.spec_from_file_location(
            "equipoise_client", Path(__file__).with_name("client.py")
        )
        _client = importlib.util.module_from_spec(_spec)
        sys.modules[_spec.name] = _client  # dataclasses look their module up
        _spec.loader.exec_module(_client)
        Choice, Client = _client.Choice, _client.Client

try:
    from litellm.integrations.custom_logger import CustomLogger
except ImportError:  # the parts that need no LiteLLM still work
    CustomLogger = object

MARK = "equipoise_request_id"  # in the metadata of a request that was decided
REPEAT = "equipoise_repeat_of"  # in that of one that repeats it, and is not reported
KNOWN = (MARK, REPEAT, "model_group")  # what tells LiteLLM's metadata from the client's
REMEMBERED = 20_000  # newest requests whose outcomes are told apart
MOST_ATTEMPTS = 100  # that an outcome may list
WARN_SECONDS = 60.0  # between two warnings of one kind
SOURCES_OF_OUTPUTS = ("seconds", "input_tokens", "output_tokens", "cost", "answer", "finish_reason")
SOURCES_OF_FEATURES = ("prompt", "body", "metadata", "key", "header")
CACHED = ("undelivered", "fresh")
Body: TypeAlias = dict[str, Any]
_log = logging.getLogger("equipoise.litellm")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How LiteLLM's names and the experiment's belong together. Raises ValueError.

    models: the model groups of each model of the experiment, by its name; a draw is sent to the
    first, and an answer of any of them, or of a deployment whose id is listed, is the model's.
    routed: the model that production serves to whom asks for a name; whoever asks for a group of
    `models` is routed to its model unless this says otherwise. features, unit: where a feature, or
    the name of the unit, is found: `prompt` (its text), `prompt.words`, `prompt.characters`,
    `prompt.messages`, or a field of `body`, `metadata`, `key` (the virtual key) or `header`, such
    as `key.team_id`. outputs: what is reported with an answer, by the output's name:
    `seconds`, `input_tokens`, `output_tokens`, `cost`, `answer` (its text), `finish_reason`.
    cached: `undelivered`, where a cached answer is told as a draw that its model never answered, or
    `fresh`, where drawn requests ask the cache for nothing. stream_usage: whether every provider
    sends token counts with streams that ask for them (`stream_options.include_usage`); unless that
    is said, tokens and cost of streams are left out, for LiteLLM's estimates look the same. url,
    token, timeout: of the daemon, as in `Client`.
    """

    models: Mapping[str, Sequence[str]]
    routed: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    unit: str | None = None
    cached: str = "undelivered"
    stream_usage: bool = False
    url: str = "http://127.0.0.1:8080"
    token: str | None = None
    timeout: float = 0.05

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models is empty, expected the model groups of each model")
        groups = [group for groups in self.models.values() for group in groups]
        if not all(self.models.values()) or len(set(groups)) != len(groups):
            raise ValueError(
                f"models is {self.models!r}, expected groups that differ, one at least"
            )
        for name, model in self.routed.items():
            if model not in self.models:
                raise ValueError(f"routed.{name} is {model!r}, expected one of {list(self.models)}")
        for name, source in (*self.features.items(), ("unit", self.unit)):
            if source is not None and source.split(".")[0] not in SOURCES_OF_FEATURES:
                known = ", ".join(SOURCES_OF_FEATURES)
                raise ValueError(
                    f"{name} is {source!r}, expected a source that begins with {known}"
                )
        for name, source in self.outputs.items():
            if source not in SOURCES_OF_OUTPUTS:
                known = ", ".join(SOURCES_OF_OUTPUTS)
                raise ValueError(f"outputs.{name} is {source!r}, expected one of {known}")
        if self.cached not in CACHED:
            raise ValueError(f"cached is {self.cached!r}, expected one of {', '.join(CACHED)}")

    @classmethod
    def read(cls, section: Mapping[str, Any], environment: Mapping[str, str]) -> Self:
        """Settings of a section of `config.yaml`; what the environment says goes first.

        EQUIPOISE_URL, _TOKEN, _TIMEOUT, _UNIT, _CACHED, _STREAM_USAGE, and as pairs _MODELS,
        _ROUTED, _FEATURES, _OUTPUTS: `EQUIPOISE_MODELS=large=gpt-4o,small=gpt-4o-mini`; a name that
        comes twice in _MODELS has two groups. Raises ValueError.
        """
        given: Body = dict(section)
        names = [each.name for each in fields(cls)]
        if unknown := given.keys() - set(names):
            raise ValueError(f"equipoise.{min(unknown)} is no setting, expected one of {names}")
        for name in names:
            text = environment.get(f"EQUIPOISE_{name.upper()}")
            if text is not None:
                pairs = name in ("models", "routed", "features", "outputs")
                given[name] = _pairs(name, text) if pairs else text
        models: dict[str, tuple[str, ...]] = {}
        named = given.get("models") or {}
        for name, group in named.items() if isinstance(named, Mapping) else named:
            more = (group,) if isinstance(group, str) else tuple(group)
            models[name] = (*models.get(name, ()), *more)
        given["models"] = models
        for name in ("routed", "features", "outputs"):
            given[name] = dict(given.get(name) or {})
        for name, convert in (("timeout", float), ("stream_usage", _truth)):
            if name in given:
                given[name] = convert(given[name])
        return cls(**given)

    @property
    def entries(self) -> dict[str, str]:
        """The routed model of each name that a request may ask for."""
        return {group: model for model, groups in self.models.items() for group in groups} | dict(
            self.routed
        )


def _pairs(name: str, text: str) -> list[tuple[str, str]]:
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    for left, equals, right in pairs:
        if not (left and equals and right):
            raise ValueError(
                f"EQUIPOISE_{name.upper()} is {text!r}, expected NAME=VALUE,NAME=VALUE"
            )
    return [(left, right) for left, _, right in pairs]


def _truth(value: object) -> bool:
    return value if isinstance(value, bool) else str(value).lower() in ("1", "true", "yes")


@dataclass(slots=True)
class Attempt:
    """One call of a deployment. model: of the experiment, None for a group that is none of its;
    call_id: LiteLLM's, one for all attempts in the proxy and one per attempt in the SDK. status: as
    in an outcome's attempts, "" while it lasts. began, ended: seconds since the epoch."""

    model: str | None
    deployment: str | None
    call_id: str | None
    call_type: Any
    began: float
    ended: float = 0.0
    status: str = ""
    cost: float | None = None

    def ends(self, status: str, at: float, cost: float | None = None) -> None:
        """The first end counts."""
        if not self.status:
            self.status, self.ended, self.cost = status, at, cost

    def reported(self) -> Body:
        seconds = round(max(0.0, self.ended - self.began), 6)
        known = {} if self.cost is None else {"cost": self.cost}
        return {"model": self.model, "status": self.status, "seconds": seconds, **known}


@dataclass(slots=True)
class Request:
    """A decided request under way. ended: how, "" while it is not."""

    choice: Choice
    from_proxy: bool
    attempts: list[Attempt] = field(default_factory=list)
    ended: str = ""


@dataclass(slots=True)
class Counters:
    """What the plugin saw. decided: requests with a decision; passed: by reason, requests that were
    served as routed without one. answered, cached, failed: how decided requests ended. repeated:
    with a call id that was there before. tokens_left_out: answers whose token counts are none, or
    may be estimates. errors: our own, each of which was logged."""

    decided: int = 0
    passed: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    cached: int = 0
    failed: int = 0
    repeated: int = 0
    tokens_left_out: int = 0
    errors: int = 0


class Equipoise(CustomLogger):  # type: ignore[misc]
    """Routing plugin and callback of LiteLLM. One per process. It never fails a request: whatever
    goes wrong, the routed model's group is served."""

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        super().__init__()
        self.settings, self.counters = settings, Counters()
        self.client = client or Client(settings.url, settings.token, timeout=settings.timeout)
        self._entries = settings.entries
        self._models = {each: model for model, all_ in settings.models.items() for each in all_}
        self._requests: OrderedDict[str, Request] = OrderedDict()
        self._warned: dict[str, float] = {}
        atexit.register(self.client.close)

    # What a request asks for becomes what was drawn.

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: Body, call_type: str
    ) -> Body:
        """The proxy's, once per request, before its Router: changes `model` in place."""
        routed = self._routed(data)
        if routed is None:
            return data
        try:
            request_id = str(data.get("litellm_call_id") or uuid.uuid4())
            known = self._requests.get(request_id)
            if known is not None:
                self.counters.repeated += 1
            choice = await self.client.decide_async(
                request_id, routed, **self._question(data, user_api_key_dict)
            )
            self._send(data, choice, from_proxy=True, known=known)
        except Exception as error:
            self._pass_through(data, routed, error)
        return data

    async def prepare(self, *, request_id: str | None = None, **kwargs: Any) -> Body:
        """The SDK's: the arguments of a Router's method, with the model that was drawn.

        request_id: the daemon's name of the request, a new one where it is left out; either is in
        the arguments' `metadata["equipoise_request_id"]`, for whoever reports the reward.
        """
        routed = self._routed(kwargs)
        if routed is None:
            return kwargs
        name = request_id or str(uuid.uuid4())
        try:
            kwargs["metadata"] = dict(kwargs.get("metadata") or {})
            known = self._requests.get(name)
            choice = await self.client.decide_async(name, routed, **self._question(kwargs, None))
            self._send(kwargs, choice, from_proxy=False, known=known)
        except Exception as error:
            self._pass_through(kwargs, routed, error)
        return kwargs

    async def async_post_call_response_headers_hook(
        self, data: Body, user_api_key_dict: Any, response: Any, **_: Any
    ) -> dict[str, str] | None:
        """The proxy's: what the application needs to report a reward."""
        bucket = _metadata(data)
        request = self._requests.get(str(bucket.get(MARK) or bucket.get(REPEAT)))
        if request is None:
            return None
        headers = {"x-equipoise-request-id": request.choice.request_id}
        if request.choice.outcome_token is not None:
            headers["x-equipoise-outcome-token"] = request.choice.outcome_token
        if request.choice.ask:
            headers["x-equipoise-ask"] = "true"
        return headers

    def _routed(self, body: Body) -> str | None:
        """The routed model of a request that belongs to the experiment."""
        bucket = _metadata(body)
        for name in (MARK, REPEAT):  # only the plugin says so
            bucket.pop(name, None)
        model = body.get("model")
        return self._entries.get(model) if isinstance(model, str) else None

    def _question(self, body: Body, key: Any) -> Body:
        features = {}
        for name, source in self.settings.features.items():
            value = look_up(source, body, key)
            if value is not None:
                features[name] = value
        unit = self.settings.unit and look_up(self.settings.unit, body, key)
        return {"features": features} | ({"unit_id": str(unit)} if unit not in (None, "") else {})

    def _send(self, body: Body, choice: Choice, *, from_proxy: bool, known: Request | None) -> None:
        if choice.model not in self.settings.models:
            self.client.outcome(choice, delivered=False)
            raise ValueError(f"models has no groups of {choice.model!r}, which was drawn")
        body["model"] = self.settings.models[choice.model][0]
        if choice.reason:
            self._passed(choice.reason)
            return
        if choice.randomized and self.settings.cached == "fresh":
            body["cache"] = {**(body.get("cache") or {}), "no-cache": True}
        # Of a repeat of a request that is under way or answered, only that one is reported.
        mark = MARK if known is None or known.ended == "failed" else REPEAT
        bucket = "litellm_metadata" if "litellm_metadata" in body else "metadata"
        body[bucket] = {**(body.get(bucket) or {}), mark: choice.request_id}
        if mark == REPEAT:
            return
        self.counters.decided += known is None
        attempts = [] if known is None else known.attempts
        self._requests[choice.request_id] = Request(choice, from_proxy, attempts)
        if len(self._requests) > REMEMBERED:
            self._requests.popitem(last=False)

    def _pass_through(self, body: Body, routed: str, error: Exception) -> None:
        body["model"] = self.settings.models[routed][0]
        self._passed(type(error).__name__)
        self._went_wrong(error)

    def _passed(self, reason: str) -> None:
        self.counters.passed[reason] = self.counters.passed.get(reason, 0) + 1
        self._warn(reason, "requests are served as routed, without a decision: %s", reason)

    # What came of it.

    async def async_pre_call_deployment_hook(self, kwargs: Body, call_type: Any) -> None:
        """LiteLLM's, once per attempt, retries and fallbacks included."""
        self._guarded(self._begins, kwargs, call_type=call_type)

    async def async_post_call_failure_deployment_hook(
        self, request_data: Mapping[str, Any], exception: Exception, call_type: Any, **_: Any
    ) -> None:
        """LiteLLM's, once per attempt that failed before its answer began."""
        self._guarded(self._failed_attempt, dict(request_data))

    async def async_post_call_failure_hook(
        self, request_data: Body, original_exception: Exception, *_: Any, **__: Any
    ) -> None:
        """The proxy's, where all attempts failed, or a stream broke off."""
        self._guarded(self._failed, request_data)

    async def async_log_success_event(
        self, kwargs: Body, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """LiteLLM's, once per answer, after its end."""
        self._guarded(self._answered, kwargs)

    async def async_log_failure_event(
        self, kwargs: Body, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """LiteLLM's: in the SDK once per attempt. The proxy sends it once per request, by then
        perhaps about the model that saved it, so there it is not read."""
        self._guarded(self._failed_attempt, kwargs, from_proxy=False)

    def _guarded(self, handle: Callable[..., None], kwargs: Body, **options: Any) -> None:
        try:
            request = self._requests.get(str(_metadata(kwargs).get(MARK)))
            if request is not None and not request.ended:
                handle(request, kwargs, **options)
        except Exception as error:
            self._went_wrong(error)

    def _begins(self, request: Request, kwargs: Body, call_type: Any = None) -> None:
        now = time.time()
        group, deployment = _place(kwargs)
        if request.attempts:
            last = request.attempts[-1]
            nested = last.deployment == deployment and last.call_type != call_type
            if nested and not last.status:
                return  # /v1/messages is carried out by another call, of the same attempt
            last.ends("failed", now)  # a stream that broke may have no failure of its own
        model, call_id = self._model(group, deployment), kwargs.get("litellm_call_id")
        if model != request.choice.model and not request.attempts:
            told = f"group {group}, deployment {deployment} for {request.choice.model}, see models"
            self._warn("other", "the first attempt is not of the model that was drawn: %s", told)
        request.attempts.append(Attempt(model, deployment, call_id, call_type, now))

    def _model(self, group: object, deployment: object) -> str | None:
        return self._models.get(str(deployment)) or self._models.get(str(group))

    def _failed_attempt(
        self, request: Request, kwargs: Body, from_proxy: bool | None = None
    ) -> None:
        if from_proxy is not None and request.from_proxy != from_proxy:
            return
        call_id, now = kwargs.get("litellm_call_id"), time.time()
        tried = [each for each in request.attempts if each.call_id == call_id]
        if tried and not tried[-1].status:
            tried[-1].ends("failed", now)
            if not request.from_proxy:  # nothing says whether another attempt follows
                self._report(request)

    def _failed(self, request: Request, _: Body) -> None:
        request.ended = "failed"
        self.counters.failed += 1
        if request.attempts:
            request.attempts[-1].ends("failed", time.time())
            self._report(request)
        else:
            self.client.outcome(request.choice, delivered=False)

    def _answered(self, request: Request, kwargs: Body) -> None:
        event = kwargs.get("standard_logging_object") or {}
        group, deployment = event.get("model_group"), event.get("model_id")
        model = self._model(group, deployment)
        if not request.attempts or request.attempts[-1].model != model:  # a call without hooks
            place = {"metadata": {"model_group": group}, "model_info": {"id": deployment}}
            self._begins(request, place)
        outputs = outputs_of(self.settings, kwargs, request.attempts)
        cost = known_cost(self.settings, kwargs)
        end = event.get("endTime") or time.time()
        if event.get("cache_hit") or kwargs.get("cache_hit"):
            # Another request's answer: nothing is known of what this draw's model would have said.
            request.ended = "cached"
            self.counters.cached += 1
            request.attempts[-1].ends("cached", end)
            self._report(request)
        else:
            request.ended = "answered"
            self.counters.answered += 1
            self.counters.tokens_left_out += not tokens_known(self.settings, kwargs)
            request.attempts[-1].ends("delivered", end, cost)
            self._report(request, outputs=outputs)

    def _report(self, request: Request, **parts: Any) -> None:
        attempts = [each.reported() for each in request.attempts]
        self.client.outcome(request.choice, attempts=attempts[-MOST_ATTEMPTS:], **parts)

    def _went_wrong(self, error: Exception) -> None:
        self.counters.errors += 1
        self._warn(repr(error), "%r", error)

    def _warn(self, kind: str, text: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._warned.get(kind, -WARN_SECONDS) >= WARN_SECONDS:
            self._warned[kind] = now
            _log.warning("equipoise: " + text, *values)


def look_up(source: str, body: Mapping[str, Any], key: Any) -> Any:
    """The value of a feature in a request's body, None where it has none.

    >>> look_up("prompt.words", {"messages": [{"role": "user", "content": "fix this"}]}, None)
    2
    """
    kind, _, path = source.partition(".")
    if kind == "prompt":
        texts = prompt_texts(body)
        text = "\n".join(texts)
        counts = {"words": len(text.split()), "characters": len(text), "messages": len(texts)}
        return text if not path else counts.get(path)
    if kind == "metadata":
        bucket = _metadata(body)
        asked = bucket.get("requester_metadata") or {}
        found = _at(asked, path)
        return found if found is not None else _at(bucket, path)
    if kind == "header":
        return _at(
            (body.get("proxy_server_request") or {}).get("headers"), path.lower(), whole=True
        )
    return _at(body if kind == "body" else key, path)


def _at(place: Any, path: str, whole: bool = False) -> Any:
    for name in (path,) if whole else path.split("."):
        place = place.get(name) if isinstance(place, Mapping) else getattr(place, name, None)
    return place


def prompt_texts(body: Mapping[str, Any]) -> list[str]:
    """The texts of a request: of its messages, or of `input` or `prompt`; images have none."""
    messages = body.get("messages") or body.get("input") or body.get("prompt") or []
    texts = []
    for message in [messages] if isinstance(messages, str) else messages:
        content = message.get("content") if isinstance(message, Mapping) else message
        parts = content if isinstance(content, list) else [content]
        found = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
        texts.append("\n".join(text for text in found if isinstance(text, str)))
    return texts


def tokens_known(settings: Settings, kwargs: Mapping[str, Any]) -> bool:
    """Whether the token counts of an answer are the provider's.

    Of an answer without counts LiteLLM says 0, of a stream it says 0 or an estimate of its own, by
    version; neither is marked. So 0 input tokens are none, and streams count only where they asked
    for usage and `stream_usage` vouches for the providers.
    """
    event = kwargs.get("standard_logging_object") or {}
    if not event.get("prompt_tokens"):
        return False
    if not (event.get("stream") or kwargs.get("stream")):
        return True
    asked = kwargs.get("stream_options") or {}
    whole = event.get("error_str") is None  # of a stream that was left, counts are estimates
    return settings.stream_usage and whole and bool(asked.get("include_usage"))


def known_cost(settings: Settings, kwargs: Mapping[str, Any]) -> float | None:
    """Cost of an answer in USD, None where it is none or made of estimates.

    LiteLLM says 0.0 for a model that it knows no price of.
    """
    event = kwargs.get("standard_logging_object") or {}
    cost: float | None = event.get("response_cost")
    unpriced = event.get("response_cost_failure_debug_info") or not cost
    return None if unpriced or not tokens_known(settings, kwargs) else cost


def outputs_of(settings: Settings, kwargs: Mapping[str, Any], attempts: Sequence[Attempt]) -> Body:
    """The configured outputs of an answer, as far as they are known.

    attempts: all of the request, of which the last one answered; LiteLLM counts a stream from the
    arrival of the request, whatever had failed before it.
    """
    event = kwargs.get("standard_logging_object") or {}
    known: Body = {"cost": known_cost(settings, kwargs)}
    start, end = event.get("startTime"), event.get("endTime")
    if len(attempts) > 1 and (event.get("stream") or kwargs.get("stream")):
        start = attempts[-1].began
    if isinstance(start, int | float) and isinstance(end, int | float):
        known["seconds"] = max(0.0, end - start)
    if tokens_known(settings, kwargs):
        known["input_tokens"] = event.get("prompt_tokens")
        known["output_tokens"] = event.get("completion_tokens")
    response = event.get("response")
    choices = response.get("choices") if isinstance(response, Mapping) else None
    if choices:
        known["answer"] = _at(choices[0], "message.content")
        known["finish_reason"] = _at(choices[0], "finish_reason")
    pairs = ((name, known.get(source)) for name, source in settings.outputs.items())
    return {name: value for name, value in pairs if value is not None}


def _metadata(kwargs: Mapping[str, Any]) -> Any:
    """The metadata of a request, wherever its call type and hook keep it."""
    inner = kwargs.get("litellm_params") or {}
    for place in (kwargs, inner):
        for name in ("litellm_metadata", "metadata"):
            bucket = place.get(name)
            if isinstance(bucket, dict) and not bucket.keys().isdisjoint(KNOWN):
                return bucket
    return kwargs.get("litellm_metadata") or kwargs.get("metadata") or {}


def _place(kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Model group and deployment id of an attempt."""
    bucket = _metadata(kwargs)
    info = kwargs.get("model_info") or bucket.get("model_info") or {}
    return bucket.get("model_group"), info.get("id")


def __getattr__(name: str) -> Any:
    """`plugin`, made when it is first asked for: of `callback_settings.equipoise` and the
    environment."""
    if name != "plugin":
        raise AttributeError(name)
    try:
        import litellm

        section = (litellm.callback_settings or {}).get("equipoise") or {}
    except ImportError:
        section = {}
    made = Equipoise(Settings.read(section, os.environ))
    globals()["plugin"] = made
    return made
