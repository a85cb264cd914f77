"""Synthetic series: one file per kind of law, registered with its weight in prior.py."""
