"""Using a trained model: folders and lists of videos, and live streams."""
