"""The hybrid network of convolution, LSTM or GRU, and attention, for images, series, text and tables."""
