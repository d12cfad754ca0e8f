"""The command line: its parser, and actions on a trained model such as `--predict`."""
