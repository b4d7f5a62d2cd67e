"""Networks of the project, and how networks are found by name."""
