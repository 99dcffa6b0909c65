"""Augmentation: random, label-preserving changes of records at each showing, for images with their boxes and texts."""
