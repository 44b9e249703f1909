"""Mathematics that methods, attacks and certificates share: tensors in, tensors out."""
