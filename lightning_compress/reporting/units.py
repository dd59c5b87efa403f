"""Numbers as they are printed in reports."""

from __future__ import annotations


def format_bytes(num_bytes: int | None) -> str:
    """Return a size with three significant digits.

    >>> format_bytes(1_838_480), format_bytes(13_600), format_bytes(12), format_bytes(None)
    ('1.84 MB', '13.6 kB', '12 B', '')
    """
    if num_bytes is None:
        return ""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        # Values that would be rounded up to 1000 take the next unit.
        if num_bytes >= 0.9995 * factor:
            return f"{_digits(num_bytes / factor)} {unit}"
    return f"{num_bytes} B"


def format_count(count: int | None) -> str:
    """Return a count with three significant digits.

    >>> format_count(459_018), format_count(17), format_count(None)
    ('459 k', '17', '')
    """
    if count is None:
        return ""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * factor:
            return f"{_digits(count / factor)} {unit}"
    return str(count)


def format_seconds(seconds: float | None) -> str:
    """Return a duration with three significant digits.

    >>> format_seconds(0.0015912), format_seconds(12.3e-6), format_seconds(None)
    ('1.59 ms', '12.3 us', '')
    """
    if seconds is None:
        return ""
    return f"{_digits(1e3 * seconds)} ms" if seconds >= 1e-4 else f"{_digits(1e6 * seconds)} us"


def is_accuracy(name: str) -> bool:
    """Return True for the name of an accuracy, which is printed in percent.

    >>> is_accuracy("test/acc"), is_accuracy("test_accuracy"), is_accuracy("test/loss")
    (True, True, False)
    """
    return name.lower().endswith(("acc", "accuracy", "acc1", "acc5", "top1", "top5"))


def format_metric(name: str, value: float) -> str:
    """Return an accuracy in percent, and any other metric as it is.

    >>> format_metric("test/acc", 0.9833), format_metric("test/loss", 0.12345)
    ('98.33', '0.1235')
    """
    return f"{100 * value:.2f}" if is_accuracy(name) and 0 <= value <= 1 else f"{value:.4g}"


def format_change(name: str, before: float, after: float) -> str:
    """Return the change of a metric with its sign.

    >>> format_change("test/acc", 0.983, 0.975)
    '-0.80'
    """
    in_percent = is_accuracy(name) and 0 <= before <= 1 and 0 <= after <= 1
    return f"{100 * (after - before):+.2f}" if in_percent else f"{after - before:+.4g}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
