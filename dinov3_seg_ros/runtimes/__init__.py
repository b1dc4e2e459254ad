"""What computes the network: one module for each inference library, behind one small protocol."""
