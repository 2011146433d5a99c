"""Read files of any kind into records: `files` finds them, `tables` and `schemas` read rows, `aozora` works."""
