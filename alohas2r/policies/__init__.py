"""Policies: what describes, computes and stores them."""
