"""Pages that hold all they show: one builder for evaluations, benchmarks and runs on a robot."""
