"""Aozora Bunko: its text format, its index, its site."""
