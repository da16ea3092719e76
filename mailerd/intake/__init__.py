"""In: what we accept, and the moment we become responsible for it."""
