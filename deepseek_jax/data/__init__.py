"""Training data: corpora, labelled sets, tokenizer, packing, and streams of batches."""
