"""What every training run has: settings on record, checkpoints, metrics, curves."""
