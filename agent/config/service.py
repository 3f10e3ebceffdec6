"""The `[service]` table of equipoise.toml: what `serve` needs beyond the experiment.

Everything has a default, so the table may be left out. Paths are relative to the folder the
command runs in. Limits are hard: what exceeds them is refused, not cut.

A token is declared by its digest, which does not show how long it is. So the texts that mistakes
and habits lead to are hashed and compared: nothing at all (a variable that was not set), up to
three characters, up to four digits, and words; each also with the line feed that `echo` adds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from itertools import product
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec

from equipoise.agent.config.parts import Part
from equipoise.agent.features.declarations import bound, twice
from equipoise.agent.features.values import Problem, shown, suggestion
from equipoise.store.address import beside

SECONDS_A_DAY = 86_400.0
Count: TypeAlias = Annotated[int, bound("a whole number of 1 or more", ge=1, le=2**40 - 1)]
Few: TypeAlias = Annotated[int, bound(ge=1, le=1_000_000)]
Period: TypeAlias = Annotated[
    float, bound("seconds, above 0, at most a day", gt=0.0, le=SECONDS_A_DAY)
]
Pace: TypeAlias = Annotated[float, bound(gt=0.0, le=1e6)]
TokenPrice: TypeAlias = Annotated[float, bound("USD per million tokens, 0 or more", ge=0.0, le=1e6)]

SHORTEST_TOKEN = 16
FEWEST_CHARACTERS = 6
"""Different ones in a token: less is a row of the same."""

_PRINTABLE = [chr(code) for code in range(32, 127)]
_WORDS = """
    token mytoken my-token my_token your-token your_token yourtoken TOKEN $TOKEN ${TOKEN} <token>
    secret mysecret my-secret topsecret supersecret secret123 secrettoken secret-token
    password passwd pass passw0rd password1 password123 p@ssw0rd P@ssw0rd letmein welcome qwerty
    admin administrator root user guest operator router route service default public private
    changeme change-me change_me changeit changethis change-this replaceme replace-me fixme todo
    test testing test123 test-token testtoken demo example sample dev development local localhost
    staging prod production foo bar baz foobar hello helloworld abc123 abcd abcdef asdf asdfgh
    12345 123456 1234567 12345678 123456789 1234567890 0123456789 0123456789abcdef 111111 000000
    null none nil undefined empty unset missing true false yes no on off key apikey api-key api_key
    bearer Bearer authorization basic equipoise equipoise-token EQUIPOISE_TOKEN $EQUIPOISE_TOKEN
    iloveyou monkey dragon master sunshine trustno1 superman batman football baseball login access
    deadbeef cafebabe xxxxx xxxxxx xxxxxxxx aaaaaaaaaaaaaaaa xxxxxxxxxxxxxxxx 0000000000000000
    changemechangeme passwordpassword secretsecret testtest admin123 admin1234 root123 admin-token
    route-token router-token a-token the-token some-token
"""


@cache
def weak_text(digest: str) -> str:
    """What this SHA-256 digest (lower-case hexadecimal) is of, in words; "" for nothing known.

    Takes half a second for a digest that is of nothing known, once for each.
    """
    wanted = bytes.fromhex(digest)
    for text, words in _candidates():
        if sha256(text.encode()).digest() == wanted:
            return words
    return ""


def few_characters(token: str) -> bool:
    """Whether a token repeats so few characters that its length says nothing."""
    return len(set(token)) < FEWEST_CHARACTERS


def _candidates() -> Iterator[tuple[str, str]]:
    yield "", "the empty text"
    for word in _WORDS.split():
        for text in dict.fromkeys((word, word.capitalize(), word.upper())):
            yield text, f"the well-known text {text!r}"
            yield f"{text}\n", f"the well-known text {text!r} and a line feed"
    for end in ("\n", "\r\n"):
        yield end, "a line feed alone"
    for number in range(10_000):
        yield f"{number:04}", "four digits"
    for length in (1, 2, 3):
        words = f"a text of {length} character{'s'[: length > 1]}"
        for characters in product(_PRINTABLE, repeat=length):
            text = "".join(characters)
            yield text, words
            if length < 3:
                yield f"{text}\n", f"{words} and a line feed"


Source: TypeAlias = Literal["text", "prompt_tokens", "completion_tokens", "seconds", "usd"]


class ShadowModel(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that is replayed.

    name: in the experiment. calls: what the endpoint calls it. input_usd: USD per million tokens of
    the prompt. output_usd: USD per million tokens of the answer.
    """

    name: str
    calls: str
    input_usd: TokenPrice
    output_usd: TokenPrice


class ShadowSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replays of cached contexts on candidate models.

    contexts: a file of JSON lines: context_id, features, messages. endpoint: base URL of an
    OpenAI-compatible interface, such as http://127.0.0.1:8000/v1. key_env: the environment variable
    that holds its key. models: which are replayed, and at what price. outputs: for each output
    feature where its value comes from. budget_usd: a hard stop on what all SIM rows of the log
    cost, in USD. max_tokens: of an answer; what it could cost at most is set aside before a request
    is sent. requests_per_minute, concurrency: pace. attempts: per request, where the endpoint is
    busy or fails. timeout_seconds: of one attempt. every_seconds: between two looks for new
    contexts.
    """

    contexts: str
    endpoint: Annotated[str, bound("an address that begins with http", pattern="^https?://")]
    models: list[ShadowModel]
    outputs: dict[str, Source]
    budget_usd: Annotated[float, bound("USD, 0 or more", ge=0.0, le=1e9)]
    key_env: str | None = None
    max_tokens: Few = 1024
    requests_per_minute: Pace = 60.0
    concurrency: Few = 2
    attempts: Few = 4
    timeout_seconds: Pace = 60.0
    every_seconds: Pace = 60.0


class OtlpSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Spans and evaluations that OpenTelemetry's exporters send, by OTLP over HTTP.

    mapping: the `[[ingest]]` table, of observations, that says where features and outputs stand in
    the row of a span. evaluation: the name of the evaluation whose result is the reward; others are
    counted and left out. only: attributes of a span, or of its resource, that it must have with
    these values to count: an application also calls models for what is no request of this
    experiment. settle_seconds: how long a span waits for those around it, and twenty times as long
    for one that it names as its parent and that has not come. wait_seconds: how long it waits for
    its evaluation, and an evaluation for its span; it is noted in a file beside the store. waiting:
    the most spans that wait.
    """

    mapping: str
    evaluation: str | None = None
    only: dict[str, str] = msgspec.field(default_factory=dict)
    settle_seconds: Annotated[float, bound("seconds, at most a day", ge=0.0, le=SECONDS_A_DAY)] = (
        15.0
    )
    wait_seconds: Annotated[
        float, bound("seconds, above 0, at most 30 days", gt=0.0, le=30 * SECONDS_A_DAY)
    ] = SECONDS_A_DAY
    waiting: Count = 1_000_000


class RetentionSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long rows stay in the store. Without this table they stay for ever.

    days: after which rows are moved out; until then a request_id that comes again gets its
    decision, and outcomes of it are taken. archive: the folder for their Parquet files. delete:
    whether to keep nothing of them instead of an archive. every_seconds: between two looks.
    """

    days: Annotated[float, bound("days, above 0, at most 36,500", gt=0.0, le=36_500.0)]
    archive: str | None = None
    delete: bool = False
    every_seconds: Period = 3600.0

    def faults(self) -> Iterator[Problem]:
        if bool(self.archive) is self.delete:
            received = "beside delete = true" if self.delete else "nothing"
            yield Problem("archive", received, "a folder for old rows, or else delete = true")


def retention_faults(
    settings: RetentionSettings | None, window: float | None, ttl: float | None
) -> Iterator[Problem]:
    """What an experiment needs of retention. window, ttl: seconds, of outcomes and of units."""
    if settings is None:
        return
    for name, needed in (("reward.window", window), ("units.ttl", ttl)):
        if needed is not None and settings.days * SECONDS_A_DAY < needed:
            limit = f"at least {needed / SECONDS_A_DAY:.3g}: {name} is {needed:g} seconds"
            yield Problem("service.retention.days", shown(settings.days), limit)


class LaneSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several deciders over one log (`serve --workers`, `serve --role`).

    folder: where deciders keep what the authority does not have yet; `<store>.lanes.d` unless
    declared, and ./equipoise-lanes beside a database. authority: where deciders send what only the
    authority answers, such as http://10.0.0.7:8080; beside it on one machine they need none.
    lease_seconds: how long a decider decides without a word from the hub, and an authority without
    renewing its term. publish_seconds: between two publications. ship_seconds: between two
    shipments. stale_seconds: how long deciders act by a publication when no newer one comes.
    """

    folder: Annotated[str, bound("the path of a folder", min_length=1)] | None = None
    authority: (
        Annotated[str, bound("an address that begins with http", pattern="^https?://")] | None
    ) = None
    lease_seconds: Annotated[float, bound("seconds, 1 to 3600", ge=1.0, le=3600.0)] = 10.0
    publish_seconds: Annotated[float, bound("seconds, 0.05 to 60", ge=0.05, le=60.0)] = 0.5
    ship_seconds: Annotated[float, bound("seconds, 0.005 to 10", ge=0.005, le=10.0)] = 0.05
    stale_seconds: Annotated[float, bound("seconds, 1 to a day", ge=1.0, le=SECONDS_A_DAY)] = 60.0

    def faults(self) -> Iterator[Problem]:
        for name, value, times in (
            ("lease_seconds", self.ship_seconds, 4.0),
            ("stale_seconds", self.publish_seconds, 4.0),
        ):
            if getattr(self, name) < times * value:
                limit = f"at least {times * value:g}, four times what it waits for"
                yield Problem(name, shown(getattr(self, name)), limit)


class OfrepSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The experiment as a feature flag (OFREP).

    routed: the model that production serves where the context of an evaluation has no attribute
    `routed`; the answer to bulk evaluations.
    """

    routed: str | None = None


def ofrep_faults(settings: OfrepSettings, models: Sequence[str]) -> Iterator[Problem]:
    """What the models of an experiment leave of these settings."""
    if settings.routed is not None and settings.routed not in models:
        limit, fix = "the name of a model", suggestion(settings.routed, models)
        yield Problem("service.ofrep.routed", shown(settings.routed), limit, fix)


Scope: TypeAlias = Literal["route", "admin"]
"""route: decide, outcomes, bulk rows and everything that is read. admin: budget, pause too."""

JOBS = ("refresh", "checkpoint", "expiry", "forecast")
"""Jobs whose intervals are set by NAME_seconds, and can be while the daemon runs."""
HostName: TypeAlias = Annotated[
    str, bound("a host name", pattern=r"^[A-Za-z0-9._\-:\[\]]{1,253}$(?!\n)")
]
_HASH = re.compile(r"[0-9a-f]{64}")


class TokenSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bearer token, by exactly one of `sha256`, `token` and `env`.

    name: for logs. scope: `route` may decide, send rows and read; `admin` may also change the
    budget, pause and resume. sha256: its SHA-256 in 64 hexadecimal digits, so that the file holds
    no secret. token: the token itself. env: an environment variable that holds it.
    """

    name: str
    scope: Scope = "route"
    sha256: str | None = None
    token: str | None = None
    env: str | None = None

    def faults(self) -> Iterator[Problem]:
        sources = [key for key in ("sha256", "token", "env") if getattr(self, key) is not None]
        if len(sources) != 1:
            received = "none of them" if not sources else " and ".join(sources)
            yield Problem("sha256", received, "exactly one of sha256, token, env")
        if self.sha256 is not None and not _HASH.fullmatch(self.sha256):
            fix = "printf %s TOKEN | sha256sum"
            yield Problem("sha256", "something else", "64 hexadecimal digits, lower case", fix)
        elif self.sha256 is not None and (text := weak_text(self.sha256)):
            limit = f"that of a secret of at least {SHORTEST_TOKEN} characters"
            yield Problem("sha256", f"the digest of {text}", limit, "make a token and hash that")
        if self.token is not None and (fault := weakness(self.token)):
            yield Problem("token", *fault, "make a longer one")


def weakness(token: str) -> tuple[str, str] | None:
    """What a token is and what it should be, None for one that may be used."""
    if len(token) < SHORTEST_TOKEN:
        return f"{len(token)} characters", f"at least {SHORTEST_TOKEN} characters"
    if few_characters(token):
        return "the same few characters again and again", "something that nobody can guess"
    if token != token.strip() or not (token.isascii() and token.isprintable()):
        return "characters that no header can carry", "printable ASCII without spaces at its ends"
    if weak_text(sha256(token.encode()).hexdigest()):
        return "a well-known text", "something that nobody can guess"
    return None


_RATE = bound("above 0, at most 1,000,000, or nothing", gt=0.0, le=1e6)


class LimitSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard limits on what clients may send.

    body_bytes: of one request; bulk_bytes: of an NDJSON body; otlp_bytes: of one of OTLP; all of
    them of what a compressed body unpacks to; packed_bytes: of one that is compressed, as it comes.
    rows: of a batch of decisions or outcomes. connections: open at once. header_seconds,
    body_seconds: from the first byte to the last of each; bulk_seconds: of an NDJSON body.
    idle_seconds: between two requests of a connection. store_seconds: how long another program may
    lock the store. waiting_rows: logged rows that may wait in memory for SQLite before requests are
    passed through. rejects: refused lines of a bulk body after which the rest is not read.
    decide_per_second: requests that one token may have decided, a second's worth at once; without
    it any number. analyst_seconds: how long one question to the analyst may take before that is
    started again. reads: reports and metrics of one token that are under way at once; a plan counts
    for eight. open_bytes: of memory for decisions that wait for their outcome, in the daemon and in
    each analyst; more of them lie in a file beside the store.
    """

    body_bytes: Count = 1 << 20
    bulk_bytes: Count = 1 << 28
    otlp_bytes: Count = 1 << 24
    packed_bytes: Count = 1 << 24
    rows: Count = 1000
    connections: Count = 2048
    header_seconds: Period = 10.0
    body_seconds: Period = 30.0
    bulk_seconds: Period = 3600.0
    idle_seconds: Period = 75.0
    store_seconds: Period = 1.0
    waiting_rows: Count = 200_000
    rejects: Count = 10_000
    decide_per_second: Annotated[float, _RATE] | None = None
    analyst_seconds: Period = 120.0
    reads: Count = 32
    open_bytes: Count = 16 << 20


BasePath: TypeAlias = Annotated[
    str,
    bound(
        "a path that begins with / and does not end with it",
        "/equipoise",
        pattern=r"^(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-]){0,8}$(?!\n)",
    ),
]
_ADDRESS = re.compile(r"https?://[^\s/?#\\]+[^\s\\]*")


class ServiceSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The daemon.

    store: the path of a SQLite file, or the URL of a PostgreSQL database,
    postgresql://host/database?schema=name. store, host, port: `--store`, `--host`, `--port`
    override them; port 0 takes a free one.
    key: the file of the experiment's secret key; `<store>.key` unless declared, and for a URL
    `<schema>.key` in the working folder.
    uds: the file of a Unix socket to listen on, instead of host and port (`--uds`); uds_mode: its
    permissions, in octal digits: who may write to it may do what a token is needed for elsewhere,
    unless tokens are declared.
    base_path: where a proxy shows the daemon, such as /equipoise; it answers there and without it.
    mode: `observe` logs everything and randomizes nothing, `run` acts.
    durability: what an answered decision survives, the death of the `process` or of the machine
    (`power`, an fsync before each answer).
    kill_switch: while this file exists every request is passed through, whatever the store does;
    `<store>.kill` unless declared.
    anchor: a file to which every checkpoint adds where the store's hash chain stands, for audits.
    refresh_seconds, refresh_outcomes: a new rule after so much time or so many outcomes, whichever
    comes first, and at the most four times a second. checkpoint_seconds: between two checkpoints.
    expiry_seconds: between two looks for outcomes that never came. forecast_seconds: between two
    forecasts of when the experiment will be decided. shutdown_seconds: how long requests that are
    under way may take when it stops. log_level: the least grave lines that are logged.
    limits: on what clients may send.
    shadow: replays of cached contexts on candidate models; otlp: spans and evaluations of
    OpenTelemetry; retention: moving old rows out of the store; none of them unless declared.
    ofrep: the experiment as a feature flag. lanes: several deciders over one log.
    tokens: none are needed on loopback; anywhere else `serve` refuses to start without one.
    names: host names, beside those of loopback, under which browsers reach the page.
    webhook: addresses that get a small JSON document at every change of status, https, or http on
    this machine.
    outcomes: `signed` takes an outcome from a token of scope route only with the `outcome_token`
    that came with its decision; `open` takes it without, from clients that do not know of it.
    """

    store: Annotated[str, bound("the path or URL of the store", min_length=1)] = "equipoise.db"
    host: str = "127.0.0.1"
    port: Annotated[int, bound("0 to 65535", "0 takes a free one", ge=0, le=65_535)] = 8080
    uds: Annotated[str, bound("the path of a socket", min_length=1)] | None = None
    uds_mode: Annotated[str, bound("three octal digits", "660", pattern="^[0-7]{3}$")] = "660"
    base_path: BasePath = ""
    mode: Literal["observe", "run"] = "run"
    durability: Literal["process", "power"] = "process"
    key: Annotated[str, bound("the path of a file", min_length=1)] | None = None
    kill_switch: str | None = None
    anchor: str | None = None
    refresh_seconds: Period = 1.0
    refresh_outcomes: Count = 1000
    checkpoint_seconds: Period = 60.0
    expiry_seconds: Period = 5.0
    forecast_seconds: Period = 60.0
    shutdown_seconds: Period = 10.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    shadow: ShadowSettings | None = None
    otlp: OtlpSettings | None = None
    retention: RetentionSettings | None = None
    ofrep: OfrepSettings = msgspec.field(default_factory=OfrepSettings)
    lanes: LaneSettings = msgspec.field(default_factory=LaneSettings)
    names: list[HostName] = msgspec.field(default_factory=list)
    webhook: list[str] = msgspec.field(default_factory=list)
    outcomes: Literal["signed", "open"] = "signed"
    tokens: list[TokenSettings] = msgspec.field(default_factory=list)
    limits: LimitSettings = msgspec.field(default_factory=LimitSettings)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.uds is not None or _loopback(self.host)

    @property
    def kill_switch_path(self) -> str:
        """The file that stops all randomizing while it exists."""
        return self.kill_switch or str(beside(self.store, ".kill"))

    def faults(self) -> Iterator[Problem]:
        if self.anchor is not None and self.anchor in ("", self.store):
            fix = "leave it out to keep none"
            yield Problem("anchor", shown(self.anchor), "the path of a file of its own", fix)
        if not self.loopback and not self.tokens:
            fix = "add [[service.tokens]], or bind to 127.0.0.1"
            yield Problem("tokens", "none", f"a token, since host is {shown(self.host)}", fix)
        yield from twice("tokens", (token.name for token in self.tokens))
        for at, address in enumerate(self.webhook):
            if (fault := _address_fault(address)) is not None:
                yield Problem(f"webhook[{at}]", *fault)


def _address_fault(address: str) -> tuple[str, str] | None:
    """What the address of a webhook is and what it should be, None for one that may be used. The
    address itself is not shown: it may hold a secret."""
    limit = "an address that begins with https://, or with http:// on this machine, without spaces"
    if not _ADDRESS.fullmatch(address):
        return "something else", limit
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "something else", limit
    if parts.scheme == "http" and not _loopback(host):
        return f"http to {shown(host)}", limit
    return None


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
