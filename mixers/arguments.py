"""The options of the constructors: an error names the option, what it was, and what is accepted."""

from __future__ import annotations

import math


def shown(x: object) -> str:
    """x in an error: what was written, or the type of what has no short form."""
    return repr(x) if x is None or isinstance(x, (bool, int, float, str)) else type(x).__name__


def integer(name: str, x: object, accepted: str) -> int:
    if isinstance(x, bool) or not isinstance(x, int):
        raise TypeError(f"{name} is {shown(x)}; accepted: {accepted}")
    return x


def whole(name: str, x: object, also: str = "") -> int:
    """A whole number from 1; `also` says what else the caller takes."""
    accepted = f"a whole number from 1{also}"
    n = integer(name, x, accepted)
    if n < 1:
        raise ValueError(f"{name} is {n}; accepted: {accepted}")
    return n


def even(name: str, x: object) -> int:
    accepted = "an even number from 2"
    n = integer(name, x, accepted)
    if n < 2 or n % 2:
        raise ValueError(f"{name} is {n}; accepted: {accepted}")
    return n


def number(
    name: str, x: object, low: float, below: float = math.inf, above: bool = False, also: str = ""
) -> float:
    """A finite number from `low` (or above it) to below `below`."""
    accepted = f"{'above' if above else 'from'} {low:g}"
    accepted += f" to below {below:g}{also}" if below < math.inf else also
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name} is {shown(x)}; accepted: a number {accepted}")
    if not (low < x if above else low <= x) or not x < below:
        raise ValueError(f"{name} is {x}; accepted: {accepted}")
    return x


def one_of(name: str, x: object, accepted: tuple[str, ...]) -> str:
    if x not in accepted:
        kind = ValueError if isinstance(x, str) else TypeError
        raise kind(f"{name} is {shown(x)}; accepted: {' or '.join(map(repr, accepted))}")
    return str(x)


def flag(name: str, x: object, also: str = "") -> bool:
    if not isinstance(x, bool):
        raise TypeError(f"{name} is {shown(x)}; accepted: True or False{also}")
    return x


def divides(name: str, n: int, of: str, m: int) -> None:
    if m % n:
        raise ValueError(f"{name} is {n}; accepted: a divisor of {of} = {m}")


def interval(name: str, x: object) -> tuple[float, float]:
    accepted = "a pair of numbers from 0, the first not above the second"
    if not isinstance(x, (tuple, list)):
        raise TypeError(f"{name} is {shown(x)}; accepted: {accepted}")
    numbers = [isinstance(y, (int, float)) and not isinstance(y, bool) for y in x]
    if len(x) != 2 or not all(numbers) or not 0 <= x[0] <= x[1]:
        raise ValueError(f"{name} is {x}; accepted: {accepted}")
    return float(x[0]), float(x[1])


def step_sizes(dt_min: object, dt_max: object) -> None:
    """The range of a state space model's initial step sizes."""
    number("dt_max", dt_max, 0, above=True)
    if number("dt_min", dt_min, 0, above=True) > dt_max:  # type: ignore[operator]
        raise ValueError(f"dt_min is {dt_min}; accepted: above 0 to dt_max = {dt_max}")
