"""Rules that configuration values keep. A broken one is a ConfigError of one line that names the key and its value."""

from __future__ import annotations

from collections.abc import Collection

from cmma.errors import ConfigError


def one_of(key: str, value: str, allowed: Collection[str]) -> None:
    """The value is in a list."""
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not one of {', '.join(name or 'empty' for name in allowed)}")


def at_least(key: str, value: float, least: float) -> None:
    """value ≥ least."""
    if not value >= least:
        raise ConfigError(f"{key}={value} must be at least {least}")


def positive(key: str, value: float) -> None:
    """value > 0."""
    if not value > 0:
        raise ConfigError(f"{key}={value} must be positive")


def within(key: str, value: float, low: float, high: float) -> None:
    """low ≤ value ≤ high."""
    if not low <= value <= high:
        raise ConfigError(f"{key}={value} must lie between {low} and {high}")


def share(key: str, value: float) -> None:
    """0 ≤ value < 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"{key}={value} must be at least 0 and below 1")
