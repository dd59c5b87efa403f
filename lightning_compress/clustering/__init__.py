"""Weight clustering: which weights share a value; torch only."""
