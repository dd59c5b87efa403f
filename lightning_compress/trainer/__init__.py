"""Lightning callbacks: thin, they know when."""
