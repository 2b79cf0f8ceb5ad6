"""The block-DCT family: images transmitted as frequency tensors."""
