"""Maps, masks and models to numbers."""
