"""One thin module per subcommand: parse options, call one function, render."""
