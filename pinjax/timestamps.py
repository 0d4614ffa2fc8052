"""Times in text, and lengths of time in seconds."""

import datetime

from pinjax import settings
from pinjax.errors import InputError

HOUR = 60 * 60
DAY = 24 * HOUR


def iso(time: int) -> str:
    """Unix seconds as ISO 8601 text."""
    return datetime.datetime.fromtimestamp(time, datetime.UTC).isoformat()


def parse(name: str, iso: str) -> int:
    """ISO 8601 text (without a zone: UTC) as unix seconds.

    Args:
      name: of the flag or field.
      iso: the text.

    Raises:
      InputError: if it is not ISO 8601, or not from 1970 to 2106.
    """
    try:
        parsed = datetime.datetime.fromisoformat(iso)
        parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)
        seconds = int(parsed.timestamp())
    except (TypeError, ValueError):
        seconds = -1
    if not 0 <= seconds <= settings.UINT32:
        raise InputError(f"{name} is {iso!r}; expected ISO 8601, from 1970 to 2106")
    return seconds
