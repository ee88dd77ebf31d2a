"""Measures policies under a frozen protocol."""
