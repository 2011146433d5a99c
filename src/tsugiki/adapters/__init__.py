"""An adapter as a file: PEFT's format both ways (`files`), the base it belongs to, a probe of what it does."""
