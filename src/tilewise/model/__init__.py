"""The model, composed of layers; name maps as data."""
