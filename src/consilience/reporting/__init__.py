"""Tables to pages."""
