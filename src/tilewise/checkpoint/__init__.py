"""Reading checkpoints: finding them, their config.json, their weights."""
