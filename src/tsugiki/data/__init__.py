"""Read files, and turn them into training rows.

records      `read` reads files into `records`; `read.answers`, answers to prompts
tokens       `encoding` and `chat` tokenise them, `store` keeps the tokens on disk
rows         `splits` chooses the held-out records, `blocks` packs the others into rows and deals them out
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
