"""How arrays are sharded: the mesh, the table from logical axes to mesh axes, and explicit communication."""
