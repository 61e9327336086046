"""Studies: searches over many trials, on Optuna."""
