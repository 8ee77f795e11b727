"""Words to function calls."""
