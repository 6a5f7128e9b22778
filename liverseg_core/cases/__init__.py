"""From a source's scan to a stored case, and what a person should know of it."""
