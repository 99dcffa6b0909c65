"""Fine-tuning only a part of a model, chosen by path, layer or expert, or low-rank adapters beside it (LoRA, DoRA)."""
