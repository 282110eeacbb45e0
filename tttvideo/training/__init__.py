"""Training: configuration, optimizer, loop, checkpoints and exact resume. `run.py` tells the story of a run."""
