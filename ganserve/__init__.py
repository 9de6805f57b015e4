"""ganserve: from training data to a production endpoint, with proof at every step."""

__version__ = "0.1.0"
