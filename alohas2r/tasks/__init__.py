"""Tasks: initial states, rewards, success, termination, as pure functions of one environment."""
