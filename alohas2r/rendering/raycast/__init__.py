"""The ray caster for CPUs."""
