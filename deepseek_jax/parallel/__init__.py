"""Where arrays lie: the mesh, the table from logical axes to mesh axes, and communication that is designed."""
