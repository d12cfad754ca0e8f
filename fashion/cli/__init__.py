"""The command line: its parser, and actions on a trained model (`--predict`, `--export`)."""
