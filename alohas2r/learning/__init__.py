"""Learning: the run loop and the algorithms on it."""
