"""Numbers and names as people read them: one form for each kind, never an exponent."""

from __future__ import annotations

import math
from collections.abc import Sequence


def figure(number: float) -> str:
    """Three significant digits, thousands separated.

    >>> [figure(each) for each in (0.02, 786.4, 1012.0, -0.5, 2.5e-7, 0.0)]
    ['0.02', '786', '1,010', '-0.5', '0.00000025', '0']
    """
    size = abs(number)
    if size == 0.0 or not math.isfinite(number):
        return "0" if size == 0.0 else str(number)
    digits = 2 - math.floor(math.log10(float(f"{size:.3g}")))
    text = f"{float(f'{number:.3g}'):,.{max(digits, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float) -> str:
    """A share in words, never rounded to none or all.

    >>> [percent(each) for each in (0.1, 0.025, 1 / 3, 0.9999, 1.0)]
    ['10%', '2.5%', '33.3%', '99.99%', '100%']
    """
    text = f"{figure(100.0 * share)}%"
    if text == "100%" and share < 1.0:
        return f"{100.0 * share:.12g}%"
    return text


def tenths(share: float) -> str:
    """A share that was simulated, to a whole percent.

    >>> [tenths(each) for each in (0.7833, 0.0, 0.004)]
    ['78%', '0%', '0%']
    """
    return f"{100.0 * share:.0f}%"


def count(number: float | None) -> str:
    """A number of requests to three digits.

    >>> count(82_123.0), count(12.3), count(0.25)
    ('82,100', '12', '0.25')
    """
    if number is None:
        return "more than were simulated"
    return figure(round(number)) if number >= 1.0 else figure(number)


def dollars(amount: float | None) -> str:
    """USD.

    >>> [dollars(each) for each in (329.4, 1287.0, 95.114, 0.004, -12.5, 0.0)]
    ['$329', '$1,290', '$95.11', '$0.004', '-$12.50', '$0']
    """
    if amount is None:
        return "unknown money"
    size, sign = abs(amount), "-" if amount < 0 else ""
    if size >= 100 or size == 0.0:
        return f"{sign}${figure(size)}"
    return f"{sign}${size:.2f}" if size >= 1.0 else f"{sign}${figure(size)}"


def duration(hours: float | None) -> str:
    """Hours, days or years in words.

    >>> duration(0.5), duration(1 / 60), duration(30.0), duration(492.0)
    ('30 minutes', '1 minute', '30 hours', '20.5 days')
    """
    if hours is None:
        return "longer than was simulated"
    if hours * 60.0 < 1.0:
        return "less than a minute"
    if hours < 1.0:
        return _units(hours * 60.0, "minute")
    if hours < 48:
        return _units(hours, "hour")
    if hours < 24 * 365:
        return _units(hours / 24.0, "day")
    return _units(hours / 24.0 / 365.0, "year")


def _units(number: float, name: str) -> str:
    text = f"{number:.0f}" if name == "minute" else figure(number)
    if text == "0":
        return f"less than a {name}"
    return f"{text} {name}" if text == "1" else f"{text} {name}s"


def brief(hours: float | None) -> str:
    """Hours, days or years for a narrow column; "" where unknown."""
    if hours is None:
        return ""
    if hours < 1.0:
        return f"{hours * 60:.0f} min"
    if hours < 48:
        return f"{figure(hours)} h"
    return f"{figure(hours / 24)} d" if hours < 24 * 365 else f"{figure(hours / 24 / 365)} y"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them.

    >>> listed([]), listed(["a"]), listed(["a", "b", "c"])
    ('', 'a', 'a, b and c')
    """
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def at_least(number: float) -> str:
    """Three digits, rounded towards 0: a bound that is never larger than it is.

    >>> at_least(0.00068157), at_least(0.0019999)
    ('0.000681', '0.00199')
    """
    if number <= 0.0 or not math.isfinite(number):
        return figure(number)
    unit = 10.0 ** (math.floor(math.log10(number)) - 2)
    return figure(math.floor(number / unit * (1.0 + 1e-12)) * unit)
