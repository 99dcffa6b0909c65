"""Train, take apart and rebuild DeepSeek's language models in JAX."""
