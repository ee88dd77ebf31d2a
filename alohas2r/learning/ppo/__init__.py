"""Teachers by reinforcement learning (PPO)."""
