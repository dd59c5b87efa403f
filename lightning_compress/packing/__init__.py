"""The packed file: what is sparse, clustered or whole numbers, in as few bytes as its entropy allows."""
