"""The router role: from a document to a State (compile.py), its meaning (oracle.py), its walk (trace.py). Pure."""
