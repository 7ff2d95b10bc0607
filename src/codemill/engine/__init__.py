"""How a model generates: key-value cache, continuous batching, sampling."""
