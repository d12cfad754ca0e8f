"""The command line: options, recipes and actions such as `--predict`."""
