"""Users a second of recommendations from a million items, exactly and by an index.

    python -m benchmarks.recommending [--users=100000] [--items=1000000]

Users and items are clustered vectors of unit length; every user has seen 100 items, which are left
out. The exact search is measured on some of the users alone, and the index on all of them. Reported
are users a second, and which share of the exact 100 results the index finds.
"""

from absl import flags

_USERS = flags.DEFINE_integer("users", 100_000, "who get recommendations")
_EXACTLY = flags.DEFINE_integer("exactly", 1_024, "of the users, for the exact search")
_ITEMS = flags.DEFINE_integer("items", 1_000_000, "that are searched")
_BACKEND = flags.DEFINE_string("backend", "scann", "of the index")
