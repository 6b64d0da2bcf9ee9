"""The tests, in tiers: lint, unit, property, netns."""
