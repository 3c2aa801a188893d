"""The training ground: data, synthetic masks, losses, loops, evaluation, export."""
