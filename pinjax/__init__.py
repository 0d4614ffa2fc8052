"""pinjax: user, product and query embeddings from an event log, in JAX and Flax."""

from __future__ import annotations

import datetime
import sys
from typing import TYPE_CHECKING

from pinjax import huge_pages, signals

if TYPE_CHECKING:
    import os

    from pinjax.serving.run import Run

if sys.argv[0] == "-m":  # a command begins, by `python -m`; to import the rest takes seconds
    huge_pages.request()
    signals.handle()


def open(workdir: str | os.PathLike, as_of: str | datetime.date | None = None) -> Run:
    """Opens a run, to embed, recommend and evaluate from Python.

    Args:
      workdir: of `pinjax.train`, or of `pinjax.evaluate` for a system without training.
      as_of: nothing later is read: a time, or ISO 8601 text, in UTC unless it has a zone; None: the
        end of training.

    Raises:
      InputError: if it holds no run, or its data set is not there.
    """
    from pinjax import timestamps
    from pinjax.serving import run

    if isinstance(as_of, datetime.date):
        as_of = as_of.isoformat()
    return run.open_run(workdir, None if as_of is None else timestamps.parse("as_of", as_of))
