"""Experiments that the documents report."""
