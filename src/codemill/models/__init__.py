"""What a model is: decoder, tokenizer, adapters, Hugging Face and GGUF checkpoints, downloadable models."""
