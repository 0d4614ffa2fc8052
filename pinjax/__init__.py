"""pinjax: user, product and query embeddings from an event log, in JAX and Flax."""
