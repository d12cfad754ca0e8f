"""Numbers about a trained model: metrics, embeddings, nearest neighbors, principal components."""
