"""Learning while a robot acts, from the log that it writes."""
