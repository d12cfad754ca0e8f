"""The results of a run: result files, figures, the HTML report and the W&B dashboard."""
