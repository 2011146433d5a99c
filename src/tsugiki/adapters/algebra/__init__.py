"""Computing with the factors of stored adapters."""
