"""Texts in: Aozora Bunko (`aozora`), files of text (`texts`), tokens and packed blocks out (`blocks`)."""
