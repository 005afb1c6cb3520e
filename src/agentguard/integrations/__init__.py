"""One thin module per library: where its seams are, how a call looks, where usage is found."""
