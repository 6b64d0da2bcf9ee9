"""The manager's side: hosts that run appliances, the push, and the commands for a person."""
