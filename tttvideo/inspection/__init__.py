"""A look inside a model: what it costs, and what its hidden states learn while it reads a video."""
