"""Contrast pairs."""
