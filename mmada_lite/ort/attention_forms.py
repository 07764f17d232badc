"""The operators by which a graph for CUDA may attend."""

JOINED, ATTENTION, MHA, PLAIN = "joined", "attention", "mha", "plain"
FORMS = (JOINED, ATTENTION, MHA, PLAIN)
