"""`mplus eval`: tasks that ask, systems that answer, and the harness between them."""
