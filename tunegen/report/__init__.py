"""The HTML report: tuned entries, the searches behind them, and baselines, on one self-contained page."""
