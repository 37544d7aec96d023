"""From words and pictures to requests, and from token ids back to words."""
