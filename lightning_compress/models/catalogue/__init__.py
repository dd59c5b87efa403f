"""Which compact networks there are, and what they cost."""
