"""Where an appliance runs: one driver each behind driver.py."""
