"""What is trained on: corpora, tokenizer, packing, and the stream of batches."""
