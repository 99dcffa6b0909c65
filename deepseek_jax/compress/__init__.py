"""Making models smaller: pruning, quantisation, and training that compensates for both."""
