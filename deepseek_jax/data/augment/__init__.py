"""Records made to differ at each showing, their labels kept: images with their boxes, and text."""
