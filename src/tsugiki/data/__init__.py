"""Read files, and turn them into training rows.

records      `sources`, `schemas` and `aozora` read files into `records`
tokens       `encoding` and `chat` tokenise them, `store` keeps the tokens on disk
rows         `splits` chooses the held-out records, `blocks` packs the others into rows
"""
