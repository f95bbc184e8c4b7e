"""Exchange of parameters with other frameworks."""
