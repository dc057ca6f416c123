"""What M+ and its alternatives cost on this machine: memory, time and operations, measured or from formulas."""
