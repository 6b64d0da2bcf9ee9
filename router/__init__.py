"""The router role: a pure function from a document to a State (compile.py), its meaning (oracle.py) and its walk (trace.py)."""
