"""What a run costs, before it is begun."""
