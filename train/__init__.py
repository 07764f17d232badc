"""The transformer and the image tokenizer in torch, the data, the objectives and the training stages. The runtime never
imports this."""
