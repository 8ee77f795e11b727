"""Model, inputs and target to maps."""
