"""One short job that measures everything on an NVIDIA GPU."""
