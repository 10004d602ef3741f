"""Say that a callback takes much of a run's time, and what would make it cheaper."""

from __future__ import annotations

from collections.abc import Mapping

_SHARE = 0.1  # of the time since the last analysis
_SECONDS = 1.0  # less is not worth a line


def cost_advice(name: str, seconds: float, period: float, savings: Mapping[str, float]) -> str | None:
    """Return what to say of a callback that took `seconds` of a period (seconds); None if it took at most a tenth.

    `savings` are the seconds that each change of its arguments would save in such a period.

    Examples:
        >>> cost_advice("AnomalyFilterCallback", 6.2, 100, {}) is None
        True
        >>> print(cost_advice("Watcher", 24.4, 61, {"`probe_size = 76`": 12.2}))
        Watcher took 24 of the 61 seconds since its last analysis (40%). To save time: `probe_size = 76` (about 12 s).
    """
    if seconds <= max(_SECONDS, _SHARE * period):
        return None
    ways = ", ".join(f"{change} (about {saved:.0f} s)" for change, saved in savings.items() if saved >= 0.5)
    time = f"{seconds:.0f} of the {period:.0f} seconds since its last analysis ({100 * seconds / period:.0f}%)"
    return f"{name} took {time}. To save time: {ways}."


def estimate_savings(seconds: float, every_n: int, sizes: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Estimate what fewer analyses, or smaller `sizes` `{argument: (now, less)}`, would save of `seconds`.

    The time of an analysis grows in proportion to the samples.

    Examples:
        >>> estimate_savings(10.0, 1, {"probe_size": (153, 76)})
        {'`every_n_validations = 5`': 8.0, '`probe_size = 76`': 5.032679738562091}
    """
    savings = {f"`every_n_validations = {5 * every_n}`": 0.8 * seconds}
    return savings | {f"`{name} = {less}`": seconds * (1 - less / now) for name, (now, less) in sizes.items()}
