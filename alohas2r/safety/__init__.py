"""What keeps arms whole: limits, guard, monitor, reactions, paths."""
