"""Memory kept in one file: safe to open, durable at every commit, read as it is needed (see `memory_state`)."""
