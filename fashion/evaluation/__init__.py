"""Numbers about a trained model: metrics, embeddings, neighbors, principal components, t-SNE."""
