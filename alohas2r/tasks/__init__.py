"""Tasks: their settings, rewards, scores and protocols."""
