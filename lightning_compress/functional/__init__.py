"""Pure tensor mathematics; torch only."""
