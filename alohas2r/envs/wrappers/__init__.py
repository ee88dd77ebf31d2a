"""Environments as other libraries expect them."""
