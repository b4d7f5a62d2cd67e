"""The engine: walk the units, features, second moments, resume, progress."""
