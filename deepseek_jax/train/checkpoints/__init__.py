"""What a run saves (checkpoint, integrity, dataset_record), and how a model comes back (restore, any_checkpoint)."""
