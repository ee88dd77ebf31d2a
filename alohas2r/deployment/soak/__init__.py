"""Runs on emulated arms in which things go wrong at random moments."""
