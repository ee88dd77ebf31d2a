"""Where a run may tell its figures beside its own folder: Weights & Biases, MLflow, a logger of one's own."""
