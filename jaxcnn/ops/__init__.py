"""Numeric primitives on arrays, without state."""
