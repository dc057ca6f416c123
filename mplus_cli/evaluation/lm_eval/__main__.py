"""`python -m mplus_cli.evaluation.lm_eval`: the command `lm_eval` with the model `mplus`."""

from __future__ import annotations

import sys

from mplus_cli.console import output
from mplus_cli.errors import MPlusError
from mplus_cli.evaluation.lm_eval import register


def main() -> int:
    """Run the harness on this process's arguments; returns the exit code."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except MPlusError as error:
        output.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        interrupted = MPlusError("interrupted", "--use_cache FILE keeps finished answers for the next time", 130)
        output.error(interrupted)
        return interrupted.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
