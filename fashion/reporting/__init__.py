"""What a run leaves: result files, figures, the HTML report and the W&B dashboard."""
