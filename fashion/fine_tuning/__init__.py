"""Training of the last blocks of the backbone together with the head."""
