"""What pruning is made of: patterns, scores, distributions, growth, and the pruner that puts them together."""
