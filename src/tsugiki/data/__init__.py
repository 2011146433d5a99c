"""Read files, and turn them into training rows.

records      `read` reads files into `records`; `read.answers`, answers to prompts
tokens       `encoding` and `chat` tokenise them, `store` keeps the tokens on disk
labels       a `corpus` has one row an example, of which `splits` chooses the held-out ones; `windows` are pieces of
             text that is scored, and `overlap` finds rows that repeat it
rows         `mixing` adds other text, `blocks` packs records into rows and deals them out
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
