"""pinjax: user, product and query embeddings from an event log, in JAX and Flax."""

import sys

from pinjax import signals

if sys.argv[0] == "-m":  # a command begins, by `python -m`; to import the rest takes seconds
    signals.handle()
