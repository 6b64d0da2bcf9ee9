"""The agent, the same in every appliance. It knows no role: see roles.py."""
