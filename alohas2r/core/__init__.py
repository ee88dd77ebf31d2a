"""What every package may use: files, progress, signals, statistics; no JAX."""
