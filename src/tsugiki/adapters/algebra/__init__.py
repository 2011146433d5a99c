"""Operations on adapters: combine, scale, truncate, compare."""
