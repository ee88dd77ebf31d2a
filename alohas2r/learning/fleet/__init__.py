"""Simulators apart from the learner: workers with the policy inside, in threads or on a Ray cluster."""
