"""What a model is trained for: head, loss and what it outputs, one task per file. Needs PyTorch only."""
