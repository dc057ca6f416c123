"""Tasks of `mplus eval`, one per file; the table that names them is `evaluation.task.TASKS`."""
