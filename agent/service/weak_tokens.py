"""Texts that are no secret: a digest of one of them, as of any short text, lets anybody in.

A digest does not show the length of what was hashed, so the texts that mistakes and habits lead to
are hashed and compared: nothing at all (a variable that was not set), up to three characters, up to
four digits, and words; each also with the line feed that `echo` adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from itertools import product

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
