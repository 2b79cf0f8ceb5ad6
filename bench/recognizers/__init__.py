"""Face recognisers: targets of attacks and judges of reconstructions."""
