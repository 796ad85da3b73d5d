"""The linter: what is known to fail in int8, found before it does."""
