"""The robot's side of learning on the robot: acting, rewards, resets, demonstrations; without what learns."""
