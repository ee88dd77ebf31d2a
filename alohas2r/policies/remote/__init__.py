"""Policies behind a websocket."""
