"""Works of the digital library Aozora Bunko: its index, its site or a mirror of it, and its text format."""

from typing import Literal

Kana = Literal["modern", "old"]
"""The kana orthography of a work."""
SITE = "https://www.aozora.gr.jp"
