"""Training: configuration, optimizer, loop, checkpoints and exact resume. `train.py` tells the story of a
run."""
