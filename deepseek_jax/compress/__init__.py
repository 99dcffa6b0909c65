"""Making trained models smaller: pruning and quantisation.  Training under either is a view (views/)."""
