"""Recipes to weights."""
