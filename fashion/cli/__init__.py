"""The command line: options, recipes, and actions on a trained model (`--predict`, `--export`)."""
