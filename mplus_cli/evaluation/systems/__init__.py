"""Systems compared by `mplus eval`, one per file; the table that names them is `evaluation.system.SYSTEMS`."""
