"""Windows cut from documents, their order, and batches of them."""
