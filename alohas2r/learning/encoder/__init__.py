"""Pretraining of the colour encoder."""
