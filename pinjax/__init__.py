"""pinjax: user, product and query embeddings from an event log, in JAX and Flax."""

import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    # A command begins, by `python -m`. While it imports, Ctrl-C ends it without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
