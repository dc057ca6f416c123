"""Every table and figure of the papers of M+ and MemoryLLM: the command, what it takes, published values, and ours."""
