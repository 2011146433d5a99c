"""Records in (`sources`, `schemas`, `aozora`), tokens (`encoding`, `chat`, `store`), splits and rows (`blocks`) out."""
