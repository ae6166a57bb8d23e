"""What is kept, and where: objects, secrets, the ledger, and the workspace that holds them together."""
