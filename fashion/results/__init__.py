"""The results of a run: metrics, result files, figures, the HTML report and the W&B dashboard."""
