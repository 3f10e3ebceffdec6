"""The example `equipoise.toml`: what `equipoise init` writes, and what stands in the repository."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

EXAMPLE = """\
# Equipoise beside a router that serves chats. Everything but name and models has a default.
# Check it with `equipoise serve --config equipoise.toml --check`.

name = "chat"

# What requests may be sent to. price: USD per request. A new version is a new treatment.
[[models]]
name = "large"
price = 0.02
version = "2026-10"

[[models]]
name = "small"
price = 0.002

# What comes back. A reward that has not come after `window` seconds is missing; certified
# intervals then take the worst case for either end, or a value you declare. Without `window` the
# agent waits for ever: one reward that never comes, and nothing after it is certified.
[reward]
low = 0.0
high = 1.0
window = 86400
missing = "worst-case"

# What is known of a request. Texts become numbers at once; no prompt is ever stored.
[[features.context]]
type = "text"
name = "prompt"
statistics = ["words", "code", "question"]

[[features.context]]
type = "category"
name = "plan"
values = ["free", "paid"]
missing = 0.0

# What is known of an answer.
[[features.outputs]]
type = "number"
name = "seconds"
low = 0.0
log = true

[[features.outputs]]
type = "number"
name = "tokens"
low = 0.0
log = true

# Which requests are randomized (gate), onto which model (assignment), and how sure to be.
[policy]
gate = "fixed-rate"
assignment = "top-two"
rate = 0.1
estimator = "hierarchical"
delta = 0.05
epsilon = 0.01

# A hard stop, in randomized requests. Leave it out for none.
[budget]
requests = 20000

# The daemon. In mode "observe" it logs everything and randomizes nothing: a good way to begin.
[service]
store = "equipoise.db"
host = "127.0.0.1"
port = 8080
mode = "run"
durability = "process"
{tokens}
# Expected traffic, for `serve --check`.
[capacity]
requests_per_second = 10

# How `equipoise ingest --mapping NAME` reads logs that are not in our shape.
[[ingest]]
name = "requests"
preset = "openai"

[ingest.fields]
reward = "feedback.thumb"

[ingest.rewards]
up = 1.0
down = 0.0

[ingest.models]
"large-2026-10-01" = "large"

[ingest.features]
prompt = "request.messages[role=user][-1].content"
plan = "user.plan"

[ingest.outputs]
seconds = "latency_seconds"
tokens = "response.usage.completion_tokens"
"""

NO_TOKENS = """
# On loopback no token is needed; anywhere else there must be one. `equipoise init` makes them:
# [[service.tokens]]
# name = "router"
# scope = "route"
# sha256 = "the SHA-256 of the token"
"""


def example_text(tokens: Mapping[str, str] | None = None) -> str:
    """The example. tokens: scope to secret; the file holds their digests only.

    >>> "sha256" in example_text({"admin": "a secret"}), "a secret" in example_text()
    (True, False)
    """
    if tokens is None:
        return EXAMPLE.replace("{tokens}", NO_TOKENS.rstrip("\n") + "\n")
    tables = [
        f'\n[[service.tokens]]\nname = "{scope}"\nscope = "{scope}"\n'
        f'sha256 = "{sha256(secret.encode()).hexdigest()}"\n'
        for scope, secret in tokens.items()
    ]
    return EXAMPLE.replace("{tokens}", "".join(tables))
