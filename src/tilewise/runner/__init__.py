"""One step on one rank: batch, forward, sample."""
