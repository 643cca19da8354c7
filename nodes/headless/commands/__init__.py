"""One module per subcommand of `reelbrush`, with `add_arguments(parser)` and `run(args) -> int`."""
