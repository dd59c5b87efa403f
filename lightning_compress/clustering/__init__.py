"""Weight clustering: k-means codebooks for weights, by a callback and by functions of torch alone."""
