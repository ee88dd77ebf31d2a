"""Scenes, physics engines, and what is read from them."""
