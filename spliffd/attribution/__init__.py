"""From a pid to process, user, unit and container."""
