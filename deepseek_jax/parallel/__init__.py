"""Where arrays lie: the device mesh and the table from logical axes to mesh axes."""
