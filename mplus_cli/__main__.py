"""Entry point of the `mplus` command and of `python -m mplus_cli`."""

from __future__ import annotations

from mplus_cli.cli import main

if __name__ == "__main__":
    main()
