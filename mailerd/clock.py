"""The wall clock: what needs the time is given this function, or in tests another."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    return datetime.now(UTC)
