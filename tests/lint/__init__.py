"""Linters and import rules, run as tests."""
