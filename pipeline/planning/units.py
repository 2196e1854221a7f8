"""Numbers with units as a plan prints them: three digits at most where they matter, no figure without a meaning."""

import math


def si_text(value: float) -> str:
    """Three digits and a decimal prefix.

    >>> si_text(39.56e12), si_text(430_000), si_text(7), si_text(0.4), si_text(1402e9)
    ('39.6 T', '430 K', '7 ', '0.4 ', '1,402 G')
    """
    for size, prefix in ((1e13, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            size = min(size, 1e12)
            return f"{value / size:,.{1 if value < 100 * size else 0}f} {prefix}"
    return f"{digits(value)} "


def bytes_text(value: float) -> str:
    """Whole bytes below a kilobyte.

    >>> bytes_text(39.56e12), bytes_text(548.4), bytes_text(0.2)
    ('39.6 TB', '548 B', 'less than a byte')
    """
    return "less than a byte" if 0 < value < 1 else f"{si_text(round(value) if value < 1e3 else value)}B"


def count_text(value: float) -> str:
    """A rate or a count.

    >>> count_text(1234.6), count_text(12.34), count_text(0.0123)
    ('1,235', '12', '0.012')
    """
    return f"{value:,.0f}" if value >= 10 else digits(value)


def digits(value: float) -> str:
    """Two digits that count, never an exponent.

    >>> digits(7), digits(3.14159), digits(0.00214), digits(0)
    ('7', '3.1', '0.0021', '0')
    """
    if value == 0:
        return "0"
    places = max(0, 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration_text(seconds: float) -> str:
    """In the unit in which it is said.

    >>> duration_text(0.2), duration_text(75), duration_text(3 * 3600), duration_text(500 * 3600)
    ('less than a second', '75 seconds', '3 hours', '500 hours')
    >>> duration_text(600), duration_text(5.25 * 3600)
    ('10 minutes', '5.2 hours')
    """
    if seconds < 1:
        return "less than a second"
    for size, unit in ((3600, "hours"), (60, "minutes"), (1, "seconds")):
        if seconds >= (2 if unit != "seconds" else 1) * size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 10 else f"{digits(value)} {unit}"
    raise AssertionError("every duration has a unit")


def cores_text(cores: float) -> str:
    """Whole cores, at least one.

    >>> cores_text(0.02), cores_text(1.0), cores_text(5.6)
    ('1 core', '1 core', '6 cores')
    """
    whole = max(1, math.ceil(cores - 1e-9))
    return f"{whole:,} core{'s' * (whole > 1)}"
