"""What of a trained model is trained further: by path, by layer, by expert, or adapters of low rank beside it."""
