"""FakeQuantizedCall integers: numbers, observers, places, and the lowering to real ones; torch only."""
