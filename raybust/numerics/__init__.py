"""Mathematics shared by methods, attacks and certificates: tensors in, tensors out."""
