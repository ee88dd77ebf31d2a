"""Policies that learn on the robot: what actor, learner and exported file share; NumPy alone when imported."""
