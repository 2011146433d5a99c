"""Operations on adapters: combine, scale, truncate, extract, compare."""
